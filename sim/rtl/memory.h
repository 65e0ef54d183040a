// A memory of several AXI4 channels, for a Verilated design: latency, bandwidth, random pauses, DRAM
// timing and faults. It also holds the masters to IHI 0022 and to this project's own rules (INCR,
// at most 16 beats, never across 4 KiB); the first breach stops the simulation.
// MemorySetup, DramSetup and ChannelSetup are filled in by simulation.py, field by field.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace flightllm {

// Nanoseconds, see spec/dram.py; `period` is that of the design's clock.
struct DramSetup {
    double period, hit, activate, precharge, row_cycle, write_to_read, read_to_write;
    double refresh_interval, refresh, bytes_per_ns, same_group;
    uint32_t banks, row_bytes, granule, groups, enabled;
};

struct MemorySetup {
    uint64_t seed;
    double bytes_per_cycle;  // of a channel's reads and writes together; 0: no limit
    uint32_t latency;        // cycles from an address to its first beat
    uint32_t write_latency;  // cycles from a burst's last beat to its response
    uint32_t outstanding;    // bursts that a channel takes before it answers, each way
    uint32_t stall[5];       // per mille of cycles in which AR, R, AW, W, B pause
    DramSetup dram;
};

struct ChannelSetup {
    uint8_t *data;
    uint64_t base, size;  // where it lies on the bus, and its bytes
};

enum Response { OKAY = 0, SLVERR = 2, DECERR = 3 };
enum FaultKind { FAIL_READ = 1, FAIL_WRITE = 2, SILENT = 4 };
enum { AR, R, AW, W, B };

// Bytes of a channel whose access goes wrong.
struct Fault {
    uint64_t first, last;
    uint32_t kind;
};

// What a channel did since its counters were cleared.
struct ChannelCounts {
    uint64_t read_bursts, read_beats, write_bursts, write_beats;
    uint64_t first_address, last_beat;  // cycles: of the first AR taken, of the last R given
};

struct Random {
    uint64_t state;
    bool under(uint32_t per_mille) {
        if (!per_mille) return false;
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        return (state >> 33) % 1000 < per_mille;
    }
};

// One channel's banks, with the steps of spec/dram.py's DramChannel in its order of arithmetic.
class Dram {
  public:
    void open(const DramSetup &setup) {
        s = setup;
        rows.assign(s.banks, -1);
        free.assign(s.banks, 0.0);
        activated.assign(s.banks, -s.row_cycle);
        bus = resumed = refreshes = 0;
        group = -1;
        writing = false;
    }
    // Nanoseconds at which an access that arrives at `now` begins and ends on the data bus.
    void access(double now, uint64_t address, uint32_t size, bool write, double &begin,
                double &end) {
        begin = -1;
        while (size) {
            const uint32_t left = s.row_bytes - address % s.row_bytes;
            const uint32_t part = size < left ? size : left;
            const double at = row(now, address, part, write);
            if (begin < 0) begin = at;
            address += part;
            size -= part;
        }
        end = bus;
    }

  private:
    static double later(double a, double b) { return a > b ? a : b; }
    double row(double now, uint64_t address, uint32_t size, bool write) {
        const uint64_t page = address / s.row_bytes, bank = page % s.banks;
        const int64_t wanted = page / s.banks;
        double command = later(later(now, free[bank]), resumed);
        if (rows[bank] != wanted) {
            const double closing = rows[bank] >= 0 ? s.precharge : 0.0;
            command = later(command + closing, activated[bank] + s.row_cycle);
            activated[bank] = command;
            command = command + s.activate;
        }
        command = held(later(command, bus - s.hit), bank);
        rows[bank] = wanted;
        const int64_t first = address / s.granule % s.groups;
        const int64_t last = (address + size - 1) / s.granule % s.groups;
        double idle = bus;
        if (write != writing) idle = idle + (write ? s.read_to_write : s.write_to_read);
        else if (first == group) idle = idle + s.same_group;
        const double begin = later(command + s.hit, idle);
        bus = begin + size / s.bytes_per_ns;
        free[bank] = bus - s.hit;
        group = last;
        writing = write;
        return begin;
    }
    // A refresh comes before the command: it closes every row.
    double held(double command, uint64_t bank) {
        const double number = std::floor(command / s.refresh_interval);
        if (number > refreshes) {
            refreshes = number;
            resumed = later(number * s.refresh_interval, bus - s.hit) + s.refresh;
            rows.assign(s.banks, -1);
            activated[bank] = later(command, resumed);
            command = activated[bank] + s.activate;
        }
        return command;
    }
    DramSetup s;
    std::vector<int64_t> rows;
    std::vector<double> free, activated;
    double bus = 0, resumed = 0, refreshes = 0;
    int64_t group = -1;
    bool writing = false;
};

// A channel's wires; widths as the design's ports have them.
struct Wires {
    uint8_t *arvalid, *arready, *arlen, *arsize, *arburst, *rvalid, *rready, *rlast, *rresp;
    uint8_t *awvalid, *awready, *awlen, *awsize, *awburst, *wvalid, *wready, *wlast, *bvalid;
    uint8_t *bready, *bresp;
    uint64_t *araddr, *awaddr;
    uint8_t *rdata, *wdata, *wstrb;
};

class Channel {
  public:
    Wires w;
    ChannelCounts counts{};
    std::vector<Fault> faults;

    void open(const MemorySetup *memory, const ChannelSetup &channel, uint32_t number,
              uint32_t beat_bytes, std::string *breach) {
        m = memory;
        c = channel;
        beat = beat_bytes;
        name = number;
        failure = breach;
        random.state = m->seed + 0x9E3779B97F4A7C15ULL * (number + 1);
        clear();
    }
    void clear() {
        reads.clear();
        writes.clear();
        data.clear();
        answers.clear();
        offered = answering = false;
        held_ar = held_aw = held_w = false;
        free_at = 0;
        if (m->dram.enabled) dram.open(m->dram);
    }
    uint32_t outstanding() const {
        return reads.size() + writes.size() + answers.size();
    }
    // Inputs of the design in this cycle, from what was there before it.
    void drive(uint64_t now) {
        *w.arready = reads.size() < m->outstanding && !random.under(m->stall[AR]);
        *w.awready = writes.size() + answers.size() < m->outstanding && !random.under(m->stall[AW]);
        *w.wready = data.size() < 32 && free_at <= now && !random.under(m->stall[W]);
        if (!offered && !reads.empty() && reads.front().ready <= now && free_at <= now &&
            !random.under(m->stall[R])) {
            const Burst &burst = reads.front();
            offered = true;
            spend(now);
            std::memcpy(w.rdata, &burst.bytes[burst.beat * beat], beat);
            *w.rresp = burst.response;
            *w.rlast = burst.beat + 1 == burst.beats;
        }
        *w.rvalid = offered;
        if (!answering && !answers.empty() && answers.front().ready <= now &&
            !random.under(m->stall[B])) {
            answering = true;
            *w.bresp = commit(answers.front());
        }
        *w.bvalid = answering;
    }
    // What the design does in this cycle.
    void sample(uint64_t now) {
        address(now, false, *w.arvalid, *w.arready, held_ar, last_ar);
        address(now, true, *w.awvalid, *w.awready, held_aw, last_aw);
        take_beat(now);
        if (!writes.empty() && data.size() >= writes.front().beats) finish_write(now);
        if (offered && *w.rready) {
            offered = false;
            ++counts.read_beats;
            counts.last_beat = now;
            if (++reads.front().beat == reads.front().beats) reads.pop_front();
        }
        if (answering && *w.bready) {
            answering = false;
            answers.pop_front();
        }
    }

  private:
    struct Burst {
        uint64_t address, ready;
        uint32_t beats, beat, response;
        std::vector<uint8_t> bytes;
        std::vector<uint64_t> strobes;
    };
    struct Request {
        uint64_t address;
        uint32_t len, size, burst;
        bool operator!=(const Request &o) const {
            return address != o.address || len != o.len || size != o.size || burst != o.burst;
        }
    };
    struct Beat {
        std::vector<uint8_t> bytes;
        uint64_t strobe;
        bool last;
        bool operator!=(const Beat &o) const {
            return bytes != o.bytes || strobe != o.strobe || last != o.last;
        }
    };

    void fail(const char *what, uint64_t where) {
        if (!failure->empty()) return;
        char text[160];
        std::snprintf(text, sizeof text, "memory channel %u: %s (address 0x%llx)", name, what,
                      (unsigned long long)where);
        *failure = text;
    }
    // One beat's share of the bandwidth; fractions of a cycle are carried on.
    void spend(uint64_t now) {
        if (m->bytes_per_cycle > 0)
            free_at = (free_at > now - 1.0 ? free_at : now) + beat / m->bytes_per_cycle;
    }
    void address(uint64_t now, bool write, bool valid, bool ready, bool &held, Request &last) {
        const char *kind = write ? "AW" : "AR";
        if (!valid) {
            if (held) fail(write ? "awvalid was taken back" : "arvalid was taken back", last.address);
            return;
        }
        const Request request = write
            ? Request{*w.awaddr, *w.awlen, *w.awsize, *w.awburst}
            : Request{*w.araddr, *w.arlen, *w.arsize, *w.arburst};
        if (held && request != last)
            fail(write ? "AW changed while it waited" : "AR changed while it waited", request.address);
        held = !ready;
        last = request;
        if (ready) accept(now, write, request, kind);
    }
    void accept(uint64_t now, bool write, const Request &request, const char *kind) {
        const uint32_t beats = request.len + 1, bytes = beats * beat;
        if (request.burst != 1) fail("a burst is not INCR", request.address);
        if (1u << request.size != beat) fail("a burst is narrower than its channel", request.address);
        if (beats > 16) fail("a burst has more than 16 beats", request.address);
        if (request.address % beat) fail("an address is not a multiple of a beat", request.address);
        if (request.address % 4096 + bytes > 4096) fail("a burst crosses 4 KiB", request.address);
        Burst burst{request.address - c.base, 0, beats, 0, OKAY, {}, {}};
        burst.response = respond(burst.address, bytes, write ? FAIL_WRITE : FAIL_READ);
        if (write) {
            ++counts.write_bursts;
            writes.push_back(burst);
            return;
        }
        if (!counts.read_bursts++) counts.first_address = now;
        burst.bytes.assign(bytes, 0);
        if (burst.response == OKAY) std::memcpy(burst.bytes.data(), c.data + burst.address, bytes);
        burst.ready = hit(burst.address, bytes, SILENT) ? UINT64_MAX
            : m->dram.enabled ? timed(now, burst.address, bytes, false) : now + m->latency;
        reads.push_back(burst);
    }
    // The cycle in which a read's first beat, or a write's response, is there.
    uint64_t timed(uint64_t now, uint64_t address, uint32_t bytes, bool write) {
        double begin, end;
        dram.access(now * m->dram.period, address, bytes, write, begin, end);
        return (uint64_t)std::ceil((write ? end : begin) / m->dram.period);
    }
    bool hit(uint64_t address, uint32_t bytes, uint32_t kind) const {
        for (const Fault &fault : faults)
            if (fault.kind & kind && address <= fault.last && address + bytes > fault.first) return true;
        return false;
    }
    uint32_t respond(uint64_t address, uint32_t bytes, uint32_t kind) const {
        if (address >= c.size || bytes > c.size - address) return DECERR;
        return hit(address, bytes, kind) ? SLVERR : OKAY;
    }
    void take_beat(uint64_t now) {
        if (!*w.wvalid) {
            if (held_w) fail("wvalid was taken back", 0);
            return;
        }
        if (!held_w || *w.wready) {
            Beat now{{w.wdata, w.wdata + beat}, strobe(), (bool)*w.wlast};
            if (held_w && now != last_w) fail("W changed while it waited", 0);
            last_w = now;
        }
        held_w = !*w.wready;
        if (*w.wready) {
            ++counts.write_beats;
            spend(now);
            data.push_back(last_w);
        }
    }
    uint64_t strobe() const {
        uint64_t bits = 0;
        std::memcpy(&bits, w.wstrb, beat == 16 ? 2 : beat / 8);
        return bits;
    }
    void finish_write(uint64_t now) {
        Burst burst = writes.front();
        writes.pop_front();
        for (uint32_t k = 0; k < burst.beats; ++k) {
            const Beat &one = data.front();
            if (one.last != (k + 1 == burst.beats)) fail("wlast is in the wrong beat", burst.address);
            burst.bytes.insert(burst.bytes.end(), one.bytes.begin(), one.bytes.end());
            burst.strobes.push_back(one.strobe);
            data.pop_front();
        }
        const uint32_t bytes = burst.beats * beat;
        burst.ready = hit(burst.address, bytes, SILENT) ? UINT64_MAX
            : m->dram.enabled ? timed(now, burst.address, bytes, true) : now + m->write_latency;
        answers.push_back(burst);
    }
    // Memory changes no earlier than the response says so.
    uint32_t commit(const Burst &burst) {
        if (burst.response == OKAY)
            for (size_t k = 0; k < burst.bytes.size(); ++k)
                if (burst.strobes[k / beat] >> (k % beat) & 1)
                    c.data[burst.address + k] = burst.bytes[k];
        return burst.response;
    }

    const MemorySetup *m = nullptr;
    ChannelSetup c{};
    uint32_t beat = 0, name = 0;
    std::string *failure = nullptr;
    Random random{};
    Dram dram;
    std::deque<Burst> reads, writes, answers;
    std::deque<Beat> data;
    bool offered = false, answering = false, held_ar = false, held_aw = false, held_w = false;
    Request last_ar{}, last_aw{};
    Beat last_w{};
    double free_at = 0;
};

}  // namespace flightllm
