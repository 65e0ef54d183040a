// What the units of a traced design do, from the ports that hw/top.py describes: the words of every
// instruction, when it started and ended, and a copy of the F and A buffers as they are written.
#pragma once
#include <cstdint>
#include <cstring>
#include <deque>
#include <string>
#include <vector>

namespace flightllm {

constexpr uint32_t TRACE_UNITS = 6, TRACE_WORDS = 32;

// An instruction that is done; simulation.py has the same fields.
struct Event {
    uint64_t start, end;
    uint32_t core, unit, address, count;
    uint32_t words[TRACE_WORDS];
};

// A port of any width up to 64 bits.
struct Port {
    const void *data;
    size_t size;
    uint64_t get() const {
        uint64_t value = 0;
        std::memcpy(&value, data, size);
        return value;
    }
};
template <class Wire>
Port port(const Wire &wire) {
    return {&wire, sizeof wire < 8 ? sizeof wire : 8};
}

struct UnitPorts {
    Port start, done, address;
};
struct WritePorts {
    Port valid, addr, count;
    const void *data;
};
struct TracePorts {
    UnitPorts units[TRACE_UNITS];
    Port valid, first, unit, word;
    WritePorts f, a;
};

class CoreTrace {
  public:
    TracePorts p;
    uint32_t core = 0;
    void *f = nullptr, *a = nullptr;
    uint64_t f_words = 0, a_bytes = 0;

    void clear() {
        for (uint32_t u = 0; u < TRACE_UNITS; ++u) {
            waiting[u].clear();
            running[u].clear();
        }
    }
    void sample(uint64_t now, std::deque<Event> &events, std::string &failure) {
        keep(p.f, f, f_words, 4, failure);
        keep(p.a, a, a_bytes, 1, failure);
        for (uint32_t u = 0; u < TRACE_UNITS; ++u) {
            const UnitPorts &unit = p.units[u];
            if (unit.done.get()) finish(now, u, events, failure);
            if (unit.start.get()) start(now, u, unit.address.get(), failure);
        }
        if (p.valid.get()) take(failure);
    }

    // The unit's instruction that is running, or null.
    const Event *current(uint32_t unit) const {
        return running[unit].empty() ? nullptr : &running[unit].front();
    }

  private:
    void say(const char *what, uint32_t unit, std::string &failure) {
        if (failure.empty())
            failure = "trace of core " + std::to_string(core) + ", unit " + std::to_string(unit) +
                      ": " + what;
    }
    void keep(const WritePorts &w, void *buffer, uint64_t size, uint32_t width,
              std::string &failure) {
        if (!w.valid.get() || !buffer) return;
        const uint64_t at = w.addr.get(), count = w.count.get();
        if (at + count > size) {
            say("a write outside a buffer", width, failure);
            return;
        }
        std::memcpy(static_cast<uint8_t *>(buffer) + at * width, w.data, count * width);
    }
    void take(std::string &failure) {
        auto &queue = waiting[p.unit.get()];
        if (p.first.get()) queue.emplace_back();
        if (queue.empty() || queue.back().count == TRACE_WORDS) {
            say("a word without an instruction", p.unit.get(), failure);
            return;
        }
        Event &event = queue.back();
        event.words[event.count++] = p.word.get();
    }
    void start(uint64_t now, uint32_t unit, uint32_t address, std::string &failure) {
        if (waiting[unit].empty()) {
            say("it starts what was not dispatched", unit, failure);
            return;
        }
        Event event = waiting[unit].front();
        waiting[unit].pop_front();
        event.core = core;
        event.unit = unit;
        event.address = address;
        event.start = now;
        running[unit].push_back(event);
    }
    void finish(uint64_t now, uint32_t unit, std::deque<Event> &events, std::string &failure) {
        if (running[unit].empty()) {
            say("it ends what did not start", unit, failure);
            return;
        }
        running[unit].front().end = now;
        events.push_back(running[unit].front());
        running[unit].pop_front();
    }
    std::deque<Event> waiting[TRACE_UNITS], running[TRACE_UNITS];
};

}  // namespace flightllm
