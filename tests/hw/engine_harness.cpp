// Runs MM and MV instructions on the matrix engine. Arguments: folder, idle %, stall %, seed.
// The folder holds words (uint32: for each instruction its unit, its length and its words), f, a,
// params and beats0 .. beatsN, each a memory or FIFO image; f is rewritten. Prints for each
// instruction its cycles from start to done and how many of them the array took a step in.
// F and A answer two cycles after they take a request, as the core's buffers do.
#include "Vunit.h"
#include "verilated.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <type_traits>
#include <vector>
#ifndef CHANNELS
#define CHANNELS 2
#endif
#ifndef BEAT
#define BEAT 16
#endif
#define CAT_(a, b, c) a##b##c
#define CAT(a, b, c) CAT_(a, b, c)
#define EACH_1(X) X(0)
#define EACH_2(X) EACH_1(X) X(1)
#define EACH_3(X) EACH_2(X) X(2)
#define EACH_4(X) EACH_3(X) X(3)
#define EACH_8(X) EACH_4(X) X(4) X(5) X(6) X(7)
#define EACH(X) CAT(EACH_, CHANNELS, )(X)
static std::string folder;
template <class T> static std::vector<T> load(const std::string &name) {
    FILE *f = fopen((folder + "/" + name).c_str(), "rb");
    if (!f) { fprintf(stderr, "%s is missing\n", name.c_str()); exit(3); }
    fseek(f, 0, SEEK_END); long n = ftell(f); rewind(f);
    std::vector<T> v(n / sizeof(T));
    if (fread(v.data(), sizeof(T), v.size(), f) != v.size()) exit(3);
    fclose(f);
    return v;
}
static uint64_t state;
static bool under(unsigned per_cent) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    return per_cent && (state >> 33) % 100 < per_cent;
}
struct Request { bool en = false; uint32_t addr = 0, count = 0; };
template <class Port> static void put(Port &port, const void *data, size_t size) {
    if constexpr (std::is_integral_v<Port>) { uint64_t v = 0; memcpy(&v, data, size); port = v; }
    else memcpy(&port, data, size);
}
int main(int argc, char **argv) {
    folder = argv[1];
    unsigned idle = atoi(argv[2]), stall = atoi(argv[3]);
    state = strtoull(argv[4], nullptr, 10);
    auto words = load<uint32_t>("words"), F = load<uint32_t>("f"), params = load<uint32_t>("params");
    auto A = load<uint8_t>("a");
    std::vector<uint8_t> beats[CHANNELS];
    size_t taken[CHANNELS] = {};
    for (int c = 0; c < CHANNELS; c++) beats[c] = load<uint8_t>("beats" + std::to_string(c));
    // Words leave the dispatcher in program order, one a cycle, into each unit's queue.
    std::vector<std::pair<int, uint32_t>> program; std::vector<int> order;
    std::deque<uint32_t> queue[2];
    for (size_t k = 0; k < words.size(); k += 2 + words[k + 1]) {
        order.push_back(words[k]);
        for (size_t i = 0; i < words[k + 1]; i++) program.push_back({words[k], words[k + 2 + i]});
    }
    Vunit u; u.clk = 0; u.rst = 1; u.eval(); u.clk = 1; u.eval(); u.rst = 0;
    Request a[2], r[2], p[2]; size_t dispatched = 0, done = 0; bool running = false, offered[CHANNELS] = {};
    long cycle = 0, began = 0, steps = 0, quiet = 0, first = -1, ended = 0;
    // After the last instruction the rest of its stream, padding, must still be taken.
    auto left = [&] { for (int c = 0; c < CHANNELS; c++) if (taken[c] != beats[c].size()) return true; return false; };
    while (done < order.size() || left()) {
        int next = done < order.size() ? order[done] : -1;
        u.clk = 0;
        if (dispatched < program.size() && queue[program[dispatched].first].size() < 40 && !under(stall / 2)) {
            queue[program[dispatched].first].push_back(program[dispatched].second); dispatched++;
        }
#define QUEUE(n, i) u.n##_queue___05Fvalid = !queue[i].empty(); \
        u.n##_queue___05Fpayload = queue[i].empty() ? 0 : queue[i].front(); \
        u.n##_semaphores___05Fgranted = 0;
        QUEUE(mm, 0) QUEUE(mv, 1)
#define BEATS(c) { bool more = taken[c] + BEAT <= beats[c].size(); \
        offered[c] = more && (offered[c] || !under(idle)); \
        CAT(u.beats___05F, c, ___05Fvalid) = offered[c]; \
        if (more) put(CAT(u.beats___05F, c, ___05Fpayload), &beats[c][taken[c]], BEAT); }
        EACH(BEATS)
        std::vector<uint8_t> window(sizeof u.a___05Fdata, 0xa5), vector(sizeof u.f_read___05Fdata, 0x5a);
        if (a[1].en) for (size_t k = 0; k < window.size(); k++) window[k] = a[1].addr + k < A.size() ? A[a[1].addr + k] : 0x5b;
        if (r[1].en) for (size_t k = 0; k < r[1].count; k++) memcpy(&vector[4 * k], &F[r[1].addr + k], 4);
        put(u.a___05Fdata, window.data(), window.size());
        put(u.f_read___05Fdata, vector.data(), vector.size());
        u.params___05Fdata = p[1].en ? params[p[1].addr] : 0xdeadbeef;
        u.a___05Fready = !under(stall); u.f_read___05Fready = !under(stall);
        u.f_write___05Fready = !under(stall); u.params___05Fready = !under(stall);
        u.eval();
        bool tokens = !under(stall) && !under(stall); // as if others gave them now and then
        if (tokens && !running && next == 0 && u.mm_semaphores___05Fwaiting) u.mm_semaphores___05Fgranted = 1, running = true, began = cycle, steps = 0, first = -1;
        if (tokens && !running && next == 1 && u.mv_semaphores___05Fwaiting) u.mv_semaphores___05Fgranted = 1, running = true, began = cycle, steps = 0, first = -1;
        u.eval();
        for (int i = 1; i; i--) a[i] = a[0], r[i] = r[0], p[i] = p[0];
        a[0] = {u.a___05Fvalid && u.a___05Fready, u.a___05Faddr, 0};
        r[0] = {u.f_read___05Fvalid && u.f_read___05Fready, u.f_read___05Faddr, u.f_read___05Fcount};
        p[0] = {u.params___05Fvalid && u.params___05Fready, u.params___05Faddr, 0};
        if (r[0].en && r[0].addr + r[0].count > F.size()) { fprintf(stderr, "F read at %u\n", r[0].addr); return 4; }
        quiet++;
        if (u.stepping) { steps++, quiet = 0, ended = cycle; if (first < 0) first = cycle; }
        if (u.fault) { fprintf(stderr, "fault at cycle %ld\n", cycle); return 6; }
        if (u.mm_queue___05Fvalid && u.mm_queue___05Fready) queue[0].pop_front();
        if (u.mv_queue___05Fvalid && u.mv_queue___05Fready) queue[1].pop_front();
#define TAKE(c) if (CAT(u.beats___05F, c, ___05Fvalid) && CAT(u.beats___05F, c, ___05Fready)) taken[c] += BEAT, offered[c] = false, quiet = 0;
        EACH(TAKE)
        if (u.f_write___05Fvalid && u.f_write___05Fready) {
            uint32_t d[64]; memcpy(d, &u.f_write___05Fdata, sizeof u.f_write___05Fdata);
            for (unsigned k = 0; k < u.f_write___05Fcount; k++) {
                if (u.f_write___05Faddr + k >= F.size()) { fprintf(stderr, "F write at %u\n", u.f_write___05Faddr); return 4; }
                F[u.f_write___05Faddr + k] = d[k];
            }
        }
        if (u.mm_semaphores___05Fdone || u.mv_semaphores___05Fdone) {
            if (!running || (bool)u.mv_semaphores___05Fdone != (next == 1)) { fprintf(stderr, "done out of order\n"); return 7; }
            printf("%ld %ld %ld %ld\n", cycle - began, steps, first - began, ended - began);
            running = false; done++; quiet = 0;
        }
        u.clk = 1; u.eval(); cycle++;
        if (quiet > 20000) {
            fprintf(stderr, "nothing moves at cycle %ld, instruction %zu, beats taken", cycle, done);
            for (int c = 0; c < CHANNELS; c++) fprintf(stderr, " %zu of %zu", taken[c], beats[c].size());
            fprintf(stderr, "\n");
            return 5;
        }
    }
    FILE *f = fopen((folder + "/f").c_str(), "wb"); fwrite(F.data(), 4, F.size(), f); fclose(f);
}
