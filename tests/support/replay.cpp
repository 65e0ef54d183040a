// Drives a Verilated design with recorded inputs and compares its outputs in every cycle.
// Arguments: a file of cycles, and how many; a cycle is the words of each of INPUTS, then OUTPUTS.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "Vunit.h"

namespace {

// A port is an unsigned integer of up to 64 bits, or an array of 32-bit words.
template <typename Port>
void load(Port &port, const uint32_t *row, int bits) {
    if constexpr (std::is_integral_v<Port>) {
        uint64_t value = row[0];
        if (bits > 32) value |= static_cast<uint64_t>(row[1]) << 32;
        port = static_cast<Port>(value);
    } else {
        for (int k = 0; 32 * k < bits; ++k) port[k] = row[k];
    }
}

template <typename Port>
bool same(const Port &port, const uint32_t *row, int bits) {
    if constexpr (std::is_integral_v<Port>) {
        uint64_t value = row[0];
        if (bits > 32) value |= static_cast<uint64_t>(row[1]) << 32;
        return static_cast<uint64_t>(port) == value;
    } else {
        for (int k = 0; 32 * k < bits; ++k)
            if (port[k] != row[k]) return false;
        return true;
    }
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 3) return 1;
    size_t words = 0;
#define X(name, bits) words += (bits + 31) / 32;
    INPUTS(X) OUTPUTS(X)
#undef X
    const size_t cycles = std::strtoull(argv[2], nullptr, 10);
    std::vector<uint32_t> rows(cycles * words);
    FILE *file = std::fopen(argv[1], "rb");
    if (!file || std::fread(rows.data(), 4, rows.size(), file) != rows.size()) {
        std::puts("the recording is incomplete");
        return 1;
    }
    std::fclose(file);
    VerilatedContext context;
    Vunit unit{&context};
    for (size_t cycle = 0; cycle < cycles; ++cycle) {
        const uint32_t *row = &rows[cycle * words];
#ifdef CLOCKED
        unit.rst = 0;
        unit.clk = 0;
#endif
#define X(name, bits) load(unit.name, row, bits); row += (bits + 31) / 32;
        INPUTS(X)
#undef X
        unit.eval();
#define X(name, bits) \
        if (!same(unit.name, row, bits)) { \
            std::printf("cycle %zu: %s differs\n", cycle, #name); \
            return 1; \
        } \
        row += (bits + 31) / 32;
        OUTPUTS(X)
#undef X
#ifdef CLOCKED
        unit.clk = 1;
        unit.eval();
#endif
    }
}
