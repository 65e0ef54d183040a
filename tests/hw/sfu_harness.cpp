// Runs MISC instructions on the SFU: argv = queue words, F image, A image (both rewritten in place).
// Memories answer two cycles after a request, as the core's buffers do.
#include "Vunit.h"
#include "verilated.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#ifndef LANES
#define LANES 4
#endif
template <class T> static std::vector<T> load(const char *path) {
    FILE *f = fopen(path, "rb"); fseek(f, 0, SEEK_END); long n = ftell(f); rewind(f);
    std::vector<T> v(n / sizeof(T)); if (fread(v.data(), sizeof(T), v.size(), f) != v.size()) exit(3);
    fclose(f); return v;
}
template <class T> static void save(const char *path, const std::vector<T> &v) {
    FILE *f = fopen(path, "wb"); fwrite(v.data(), sizeof(T), v.size(), f); fclose(f);
}
int main(int argc, char **argv) {
    auto words = load<uint32_t>(argv[1]); auto F = load<uint32_t>(argv[2]); auto A = load<uint8_t>(argv[3]);
    long want = atol(argv[4]);
    Vunit u; u.clk = 0; u.rst = 1; u.eval(); u.clk = 1; u.eval(); u.rst = 0;
    struct Read { bool en; uint32_t addr; }; Read px[2] = {}, py[2] = {};
    size_t at = 0; long done = 0, cycles = 0, idle = 0;
    u.semaphores___05Fgranted = 1;
    while (done < want) {
        u.clk = 0;
        u.queue___05Fvalid = at < words.size(); u.queue___05Fpayload = at < words.size() ? words[at] : 0;
        auto give = [&](auto &port, const Read &r) {
            uint32_t d[LANES] = {};
            for (int k = 0; k < LANES; k++) d[k] = r.en && r.addr + k < F.size() ? F[r.addr + k] : 0xdeadbeef;
            memcpy(&port, d, sizeof d);
        };
        give(u.read_x___05Fdata, px[1]); give(u.read_y___05Fdata, py[1]);
        u.eval();
        if (u.queue___05Fvalid && u.queue___05Fready) at++, idle = 0;
        if (u.semaphores___05Fdone) done++, idle = 0;
        px[1] = px[0]; py[1] = py[0];
        px[0] = {(bool)u.read_x___05Fen, u.read_x___05Faddr}; py[0] = {(bool)u.read_y___05Fen, u.read_y___05Faddr};
        if (u.f_write___05Fen) {
            uint32_t d[LANES]; memcpy(d, &u.f_write___05Fdata, sizeof d);
            for (unsigned k = 0; k < u.f_write___05Fcount; k++) {
                if (u.f_write___05Faddr + k >= F.size()) { fprintf(stderr, "F write at %u\n", u.f_write___05Faddr); return 4; }
                F[u.f_write___05Faddr + k] = d[k];
            }
        }
        if (u.a_write___05Fen) {
            uint8_t d[(LANES + 3) / 4 * 4]; memcpy(d, &u.a_write___05Fdata, LANES);
            for (unsigned k = 0; k < u.a_write___05Fcount; k++) {
                if (u.a_write___05Faddr + k >= A.size()) { fprintf(stderr, "A write at %u\n", u.a_write___05Faddr); return 4; }
                A[u.a_write___05Faddr + k] = d[k];
            }
        }
        u.clk = 1; u.eval(); cycles++;
        if (++idle > 100000) { fprintf(stderr, "nothing is done for 100000 cycles\n"); return 5; }
    }
    save(argv[2], F); save(argv[3], A); printf("%ld\n", cycles);
}
