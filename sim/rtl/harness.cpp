// A Verilated accelerator as a shared library: its clock, its AXI4-Lite host, its memory, its trace.
// Python (simulation.py) calls in for whole runs, never for a cycle. design.h, written for each
// design by library.py, names its ports: DESIGN_CHANNELS, DESIGN_BEAT, X(number, prefix) for every
// memory channel in CHANNEL_PORTS and for every core with trace ports (TRACE_CORES) in TRACE_PORTS.
#include "design.h"

#include "Vunit.h"
#include "memory.h"
#include "trace.h"
#include "verilated.h"
#ifdef WAVE
#include "verilated_vcd_c.h"
#endif
#include <memory>

using namespace flightllm;

namespace {

constexpr uint64_t PATIENCE = 100000;  // cycles in which the register file must answer
enum Stop { LIMIT = 0, INTERRUPT = 1, EVENT = 2, FAILED = 4 };

template <class Port>
uint8_t *wire(Port &port) {
    return reinterpret_cast<uint8_t *>(&port);
}

struct Simulation {
    VerilatedContext context;
    std::unique_ptr<Vunit> top;
    MemorySetup memory{};
    Channel channels[DESIGN_CHANNELS];
    std::string failure;
    uint64_t cycle = 0;
    CoreTrace traces[TRACE_CORES + 1];  // the last is for designs without
    std::deque<Event> events;
#ifdef WAVE
    std::unique_ptr<VerilatedVcdC> wave;
    std::string wave_path;
    uint64_t wave_from = 0;
#endif

    Simulation(const MemorySetup &setup, const ChannelSetup *places) : memory(setup) {
#ifdef WAVE
        context.traceEverOn(true);
#endif
        top = std::make_unique<Vunit>(&context);
#define X(number, prefix) connect(number, places[number], Wires{ \
        wire(top->prefix##_arvalid), wire(top->prefix##_arready), wire(top->prefix##_arlen), \
        wire(top->prefix##_arsize), wire(top->prefix##_arburst), wire(top->prefix##_rvalid), \
        wire(top->prefix##_rready), wire(top->prefix##_rlast), wire(top->prefix##_rresp), \
        wire(top->prefix##_awvalid), wire(top->prefix##_awready), wire(top->prefix##_awlen), \
        wire(top->prefix##_awsize), wire(top->prefix##_awburst), wire(top->prefix##_wvalid), \
        wire(top->prefix##_wready), wire(top->prefix##_wlast), wire(top->prefix##_bvalid), \
        wire(top->prefix##_bready), wire(top->prefix##_bresp), \
        &top->prefix##_araddr, &top->prefix##_awaddr, \
        wire(top->prefix##_rdata), wire(top->prefix##_wdata), wire(top->prefix##_wstrb)});
        CHANNEL_PORTS(X)
#undef X
#define PORT(prefix, name) port(top->prefix##_##name)
#define UNIT(prefix, name) UnitPorts{port(top->prefix##_##name##_start), \
        port(top->prefix##_##name##_done), port(top->prefix##_##name##_address)}
#define WRITES(prefix, name) WritePorts{port(top->prefix##_##name##_write_valid), \
        port(top->prefix##_##name##_write_addr), port(top->prefix##_##name##_write_count), \
        &top->prefix##_##name##_write_data}
#define X(number, prefix) traces[number].core = number; traces[number].p = TracePorts{ \
        {UNIT(prefix, ld), UNIT(prefix, st), UNIT(prefix, mm), UNIT(prefix, mv), \
         UNIT(prefix, misc), UNIT(prefix, sys)}, \
        PORT(prefix, dispatch_valid), PORT(prefix, dispatch_first), PORT(prefix, dispatch_unit), \
        PORT(prefix, dispatch_word), WRITES(prefix, f), WRITES(prefix, a)};
        TRACE_PORTS(X)
#undef X
        top->s_axi_control_awvalid = top->s_axi_control_wvalid = 0;
        top->s_axi_control_arvalid = top->s_axi_control_bready = top->s_axi_control_rready = 0;
        reset(4);
    }

    ~Simulation() {
#ifdef WAVE
        if (wave) wave->close();
#endif
        top->final();
    }

    void connect(int number, const ChannelSetup &place, const Wires &wires) {
        channels[number].w = wires;
        channels[number].open(&memory, place, number, DESIGN_BEAT, &failure);
    }

    void reset(uint32_t cycles) {
        for (Channel &channel : channels) channel.clear();
        top->rst = 1;
        for (uint32_t k = 0; k < cycles; ++k) {
            settle();
            edge();
        }
        top->rst = 0;
        for (Channel &channel : channels) channel.clear();
    }

    // The first half of a cycle: what everyone says in it is now on the wires.
    void settle() {
        for (Channel &channel : channels) channel.drive(cycle);
        top->clk = 0;
        top->eval();
        dump(0);
        if (top->rst) return;
        for (Channel &channel : channels) channel.sample(cycle);
        for (int core = 0; core < TRACE_CORES; ++core)
            traces[core].sample(cycle, events, failure);
    }

    void edge() {
        top->clk = 1;
        top->eval();
        dump(1);
        ++cycle;
    }

    void dump(int half) {
#ifdef WAVE
        if (wave_path.empty() || cycle < wave_from) return;
        if (!wave) {
            wave = std::make_unique<VerilatedVcdC>();
            top->trace(wave.get(), 99);
            wave->open(wave_path.c_str());
        }
        wave->dump(2 * cycle + half);
#endif
    }

    int run(uint64_t cycles) {
        const uint64_t end = cycle + cycles;
        while (cycle < end) {
            settle();
            const bool raised = top->__SYM__interrupt;  // Verilator keeps the bare name for C++
            edge();
            if (!failure.empty()) return FAILED;
            if (!events.empty()) return EVENT;
            if (raised) return INTERRUPT;
        }
        return LIMIT;
    }

    void silent(const char *what, uint32_t address) {
        char text[100];
        std::snprintf(text, sizeof text, "AXI4-Lite: no answer to a %s of 0x%04x", what, address);
        if (failure.empty()) failure = text;
    }

    void write(uint32_t address, uint32_t value) {
        top->s_axi_control_awaddr = address;
        top->s_axi_control_wdata = value;
        top->s_axi_control_wstrb = 15;
        top->s_axi_control_awvalid = top->s_axi_control_wvalid = top->s_axi_control_bready = 1;
        for (uint64_t k = 0; k < PATIENCE; ++k) {
            settle();
            const bool aw = top->s_axi_control_awvalid && top->s_axi_control_awready;
            const bool w = top->s_axi_control_wvalid && top->s_axi_control_wready;
            const bool b = top->s_axi_control_bvalid;
            edge();
            if (aw) top->s_axi_control_awvalid = 0;
            if (w) top->s_axi_control_wvalid = 0;
            if (b) {
                top->s_axi_control_bready = 0;
                return;
            }
        }
        silent("write", address);
    }

    uint32_t read(uint32_t address) {
        top->s_axi_control_araddr = address;
        top->s_axi_control_arvalid = top->s_axi_control_rready = 1;
        for (uint64_t k = 0; k < PATIENCE; ++k) {
            settle();
            const bool ar = top->s_axi_control_arvalid && top->s_axi_control_arready;
            const bool r = top->s_axi_control_rvalid;
            const uint32_t value = top->s_axi_control_rdata;
            edge();
            if (ar) top->s_axi_control_arvalid = 0;
            if (r) {
                top->s_axi_control_rready = 0;
                return value;
            }
        }
        silent("read", address);
        return 0;
    }
};

}  // namespace

extern "C" {

Simulation *sim_open(const MemorySetup *memory, const ChannelSetup *channels) {
    return new Simulation(*memory, channels);
}
void sim_close(Simulation *sim) { delete sim; }
void sim_reset(Simulation *sim, uint32_t cycles) { sim->reset(cycles); }
uint64_t sim_cycle(Simulation *sim) { return sim->cycle; }
const char *sim_failure(Simulation *sim) { return sim->failure.c_str(); }
int sim_run(Simulation *sim, uint64_t cycles) { return sim->run(cycles); }
uint32_t sim_read(Simulation *sim, uint32_t address) { return sim->read(address); }
void sim_write(Simulation *sim, uint32_t address, uint32_t value) { sim->write(address, value); }
// A register that moves on by itself: every word goes to the same address.
void sim_write_words(Simulation *sim, uint32_t address, const uint32_t *words, uint64_t count) {
    for (uint64_t k = 0; k < count; ++k) sim->write(address, words[k]);
}
void sim_fault(Simulation *sim, uint32_t channel, uint64_t first, uint64_t last, uint32_t kind) {
    sim->channels[channel].faults.push_back({first, last, kind});
}
void sim_clear_faults(Simulation *sim) {
    for (Channel &channel : sim->channels) channel.faults.clear();
}
uint32_t sim_outstanding(Simulation *sim, uint32_t channel) {
    return sim->channels[channel].outstanding();
}
void sim_counts(Simulation *sim, uint32_t channel, ChannelCounts *counts, int clear) {
    *counts = sim->channels[channel].counts;
    if (clear) sim->channels[channel].counts = {};
}
// Where the design's writes to a core's buffers go as well.
void sim_buffers(Simulation *sim, uint32_t core, void *f, uint64_t f_words, void *a,
                 uint64_t a_bytes) {
    CoreTrace &trace = sim->traces[core];
    trace.f = f;
    trace.f_words = f_words;
    trace.a = a;
    trace.a_bytes = a_bytes;
}
// The next instruction that is done; 0 where there is none.
int sim_event(Simulation *sim, Event *event) {
    if (sim->events.empty()) return 0;
    *event = sim->events.front();
    sim->events.pop_front();
    return 1;
}
// What a unit is at; 0 where it is idle.
int sim_running(Simulation *sim, uint32_t core, uint32_t unit, Event *event) {
    const Event *found = sim->traces[core].current(unit);
    if (found) *event = *found;
    return found != nullptr;
}
// Instructions of a run that was given up never end.
void sim_clear_trace(Simulation *sim) {
    sim->events.clear();
    for (CoreTrace &trace : sim->traces) trace.clear();
}
// The DRAM timing alone: `count` accesses to one channel, see DramChannel in spec/dram.py.
void sim_dram(const DramSetup *setup, uint64_t count, const double *now, const uint64_t *address,
              const uint32_t *size, const uint8_t *write, double *begin, double *end) {
    Dram dram;
    dram.open(*setup);
    for (uint64_t k = 0; k < count; ++k)
        dram.access(now[k], address[k], size[k], write[k], begin[k], end[k]);
}
int sim_wave(Simulation *sim, const char *path, uint64_t from) {
#ifdef WAVE
    sim->wave_path = path;
    sim->wave_from = from;
    return 1;
#else
    return 0;
#endif
}

}  // extern "C"
