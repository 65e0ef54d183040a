// Drives one stream unit from a file of operands and writes what it gives to another.
// Verilator writes the second of two underscores in a name as __05F.
// Arguments: operands, results, inputs, outputs, idle %, stall %, seed. Prints the cycles used.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "Vunit.h"

namespace {

constexpr uint64_t patience = 10000;  // cycles without a transfer before it counts as a hang

template <typename Port>
constexpr size_t words() {
    return (sizeof(Port) + 3) / 4;
}

// A port is an unsigned integer of up to 64 bits, or an array of 32-bit words.
template <typename Port>
void load(Port& port, const uint32_t* row) {
    if constexpr (std::is_integral_v<Port>) {
        uint64_t value = row[0];
        if constexpr (sizeof(Port) > 4) value |= static_cast<uint64_t>(row[1]) << 32;
        port = static_cast<Port>(value);
    } else {
        for (size_t k = 0; k < words<Port>(); ++k) port[k] = row[k];
    }
}

template <typename Port>
void store(const Port& port, uint32_t* row) {
    if constexpr (std::is_integral_v<Port>) {
        row[0] = static_cast<uint32_t>(port);
        if constexpr (sizeof(Port) > 4) row[1] = static_cast<uint32_t>(port >> 32);
    } else {
        for (size_t k = 0; k < words<Port>(); ++k) row[k] = port[k];
    }
}

struct Random {
    uint64_t state;
    bool under(unsigned per_cent) {
        if (per_cent == 0) return false;
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        return (state >> 33) % 100 < per_cent;
    }
};

[[noreturn]] void fail(const char* what, uint64_t cycle) {
    std::fprintf(stderr, "%s at cycle %llu\n", what, static_cast<unsigned long long>(cycle));
    std::exit(1);
}

std::vector<uint32_t> read(const char* path, size_t count) {
    std::vector<uint32_t> data(count);
    FILE* file = std::fopen(path, "rb");
    if (!file || std::fread(data.data(), 4, count, file) != count) fail("operands missing", 0);
    std::fclose(file);
    return data;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 8) fail("seven arguments are needed", 0);
    VerilatedContext context;
    Vunit unit{&context};
    const size_t in_words = words<std::decay_t<decltype(unit.i___05Fpayload)>>();
    const size_t out_words = words<std::decay_t<decltype(unit.o___05Fpayload)>>();
    const uint64_t inputs = std::strtoull(argv[3], nullptr, 10);
    const uint64_t outputs = std::strtoull(argv[4], nullptr, 10);
    const unsigned idle = std::atoi(argv[5]), stall = std::atoi(argv[6]);
    Random random{std::strtoull(argv[7], nullptr, 10)};
    const std::vector<uint32_t> operands = read(argv[1], inputs * in_words);
    std::vector<uint32_t> results(outputs * out_words), waiting(out_words), now(out_words);

    unit.rst = 1;
    for (int k = 0; k < 4; ++k) {
        unit.clk = k & 1;
        unit.eval();
    }
    unit.rst = 0;
    uint64_t given = 0, taken = 0, cycle = 0, last = 0;
    bool offered = false, held = false;
    while (taken < outputs) {
        // An offer stands until it is taken, as the stream rules want.
        offered = given < inputs && (offered || !random.under(idle));
        unit.i___05Fvalid = offered;
        if (offered) load(unit.i___05Fpayload, &operands[given * in_words]);
        unit.o___05Fready = !random.under(stall);
        unit.clk = 0;
        unit.eval();
        if (held && !unit.o___05Fvalid) fail("o.valid taken back", cycle);
        if (unit.o___05Fvalid) {
            store(unit.o___05Fpayload, now.data());
            if (held && now != waiting) fail("o.payload changed while waiting", cycle);
            held = !unit.o___05Fready;
            if (held) {
                waiting = now;
            } else {
                for (size_t k = 0; k < out_words; ++k) results[taken * out_words + k] = now[k];
                ++taken;
                last = cycle;
            }
        }
        if (offered && unit.i___05Fready) {
            ++given;
            offered = false;
            last = cycle;
        }
        unit.clk = 1;
        unit.eval();
        if (++cycle - last > patience) fail("nothing moves", cycle);
    }
    FILE* file = std::fopen(argv[2], "wb");
    if (!file || std::fwrite(results.data(), 4, results.size(), file) != results.size())
        fail("results not written", cycle);
    std::fclose(file);
    std::printf("%llu\n", static_cast<unsigned long long>(cycle));
}
