// A ULX3S in simulation: the shell, the SDRAM chip at its pins, and a serial line whose bytes are
// those of a file descriptor (the only argument), such as one end of a pseudo-terminal.
// DIVISOR: clock cycles of a bit.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <poll.h>
#include <unistd.h>
#include <vector>

#include "Vunit.h"
#include "verilated.h"

namespace {

// 4 banks of 8,192 rows of 512 words; bursts of eight, CAS latency 2.
struct Chip {
    std::vector<uint16_t> words = std::vector<uint16_t>(1 << 24);
    int row[4] = {-1, -1, -1, -1};
    uint16_t coming[16];  // words on their way to the pins, by cycle
    uint32_t cycle = 0, to = 0;
    int writing = 0;  // words of a burst that are still to come

    Chip() {
        for (uint16_t &word : coming) word = 0xdead;
    }

    static uint32_t place(int bank, int row, int column) {
        return (row * 4 + bank) * 512 + column;
    }
    // The word that the pins hold in this cycle; 0xdead where the chip says nothing.
    uint16_t step(Vunit &top) {
        uint16_t &place_now = coming[++cycle % 16];
        const uint16_t out = place_now;
        place_now = 0xdead;
        const int command = top.sdram_ras_n << 2 | top.sdram_cas_n << 1 | top.sdram_we_n;
        const int bank = top.sdram_ba, address = top.sdram_a;
        if (command == 3) row[bank] = address;
        if (command == 2)
            for (int &open : row) open = -1;
        if (command == 5 || command == 4) {
            if (row[bank] < 0 || address & 7) {
                std::fprintf(stderr, "access to a closed row, or across a burst\n");
                std::exit(1);
            }
            const uint32_t at = place(bank, row[bank], address & 511);
            if (command == 5) {
                for (int word = 0; word < 8; ++word)
                    coming[(cycle + 2 + word) % 16] = words[at + word];
            } else {
                to = at;
                writing = 8;
            }
        }
        if (writing) {
            uint16_t &word = words[to++];
            if (!(top.sdram_dqm & 1)) word = (word & 0xff00) | (top.sdram_dq_o & 0xff);
            if (!(top.sdram_dqm & 2)) word = (word & 0xff) | (top.sdram_dq_o & 0xff00);
            --writing;
        }
        return out;
    }
};

// Bytes to the design's receiver: start bit, eight bits, stop bit.
struct Sender {
    uint32_t bits = 0;
    int left = 0, timer = 0;
    bool idle() const { return !left; }
    void start(uint8_t byte) {
        bits = byte << 1 | 0x200;
        left = 10;
        timer = DIVISOR;
    }
    int step() {
        if (!left) return 1;
        const int level = bits & 1;
        if (!--timer) {
            bits >>= 1;
            timer = DIVISOR;
            --left;
        }
        return level;
    }
};

struct Taker {
    int left = 0, timer = 0;
    uint8_t byte = 0;
    // Gives a byte when its last bit has come, else -1.
    int step(int level) {
        if (!left) {
            if (!level) {
                left = 9;
                timer = DIVISOR + DIVISOR / 2;
            }
            return -1;
        }
        if (--timer) return -1;
        timer = DIVISOR;
        if (--left) {
            byte = byte >> 1 | level << 7;
            return -1;
        }
        return byte;
    }
};

}  // namespace

int main(int argc, char **argv) {
    const int line = std::atoi(argv[1]);
    VerilatedContext context;
    Vunit top(&context);
    Chip chip;
    Sender sender;
    Taker taker;
    std::vector<uint8_t> waiting;
    size_t next = 0;
    top.rst = 1;
    top.received = 1;
    for (uint64_t cycle = 0;; ++cycle) {
        if (cycle == 8) top.rst = 0;
        if (sender.idle() && next < waiting.size()) sender.start(waiting[next++]);
        if (next == waiting.size() && cycle % 64 == 0) {
            pollfd ready{line, POLLIN, 0};
            if (poll(&ready, 1, 0) > 0) {
                waiting.resize(4096);
                const ssize_t got = read(line, waiting.data(), waiting.size());
                if (got <= 0) return 0;
                waiting.resize(got);
                next = 0;
            }
        }
        top.received = sender.step();
        top.clk = 0;
        top.eval();
        top.sdram_dq_i = chip.step(top);
        const int byte = taker.step(top.sent);
        top.eval();
        top.clk = 1;
        top.eval();
        if (byte >= 0) {
            const uint8_t out = byte;
            if (write(line, &out, 1) != 1) return 0;
        }
    }
}
