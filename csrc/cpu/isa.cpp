// The list of instruction sets, best first, and the choice among them.
#include "isa.h"

#include <atomic>
#include <cstring>

#if defined(FASTRNN_X86_AMX) && !defined(FASTRNN_EMULATE_AMX)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace fastrnn::cpu {

extern const Isa isa_portable;
#if defined(FASTRNN_X86_VARIANTS)
extern const Isa isa_avx2;
extern const Isa isa_avx512;
#if defined(FASTRNN_X86_BF16)
extern const Isa isa_avx512_bf16;
#endif
#if defined(FASTRNN_X86_AMX)
extern const Isa isa_amx;
#endif
#endif

namespace {

struct Candidate {
    const Isa* isa;
    bool (*runs)();
};

#if defined(FASTRNN_X86_VARIANTS)
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
}
#endif
#if defined(FASTRNN_X86_BF16)
bool has_avx512_bf16() {
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif
#if defined(FASTRNN_X86_AMX)
#if defined(FASTRNN_EMULATE_AMX)
bool has_amx() {
    return has_avx512_bf16();
}
#else
// The kernel lends the tile registers to a process that asks for them, and kills one that uses them without.
bool may_use_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr int ask_for_state = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0;
#else
    return false;
#endif
}
bool has_amx() {
    static const bool has = [] {
        unsigned a, b, c, d;
        if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
        constexpr unsigned amx_bf16 = 1u << 22, amx_tile = 1u << 24;
        if (!(d & amx_bf16) || !(d & amx_tile)) return false;
        // That the system saves the state of tiles (XCR0 bits 17 and 18) when it switches between threads.
        constexpr unsigned os_saves_states = 1u << 27, tile_states = 3u << 17;
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & os_saves_states)) return false;
        unsigned low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        return (low & tile_states) == tile_states && may_use_tiles();
    }();
    return has;
}
#endif
#endif
bool always() {
    return true;
}

// Best first. Emulated tiles are there to be tested, and run only where they are asked for.
const Candidate candidates[] = {
#if defined(FASTRNN_X86_VARIANTS)
#if defined(FASTRNN_X86_AMX) && !defined(FASTRNN_EMULATE_AMX)
    {&isa_amx, has_amx},
#endif
#if defined(FASTRNN_X86_BF16)
    {&isa_avx512_bf16, has_avx512_bf16},
#endif
    {&isa_avx512, has_avx512},
    {&isa_avx2, has_avx2},
#endif
    {&isa_portable, always},
#if defined(FASTRNN_X86_AMX) && defined(FASTRNN_EMULATE_AMX)
    {&isa_amx, has_amx},
#endif
};
constexpr int count = sizeof candidates / sizeof candidates[0];

const Isa* chosen = &isa_portable;
std::atomic<Precision> lowest_precision{Precision::highest};

}  // namespace

const Isa& isa() {
    return *chosen;
}

void set_precision(Precision lowest) {
    lowest_precision.store(lowest, std::memory_order_relaxed);
}
Precision precision() {
    return lowest_precision.load(std::memory_order_relaxed);
}

const char* const* isa_supported() {
    static const char* names[count + 1];
    int n = 0;
    for (const Candidate& c : candidates)
        if (c.runs()) names[n++] = c.isa->name;
    names[n] = nullptr;
    return names;
}

bool choose_isa(const char* name) {
    for (const Candidate& c : candidates) {
        // The name first: finding out whether AMX runs asks the system for its registers.
        if ((!name || !std::strcmp(name, c.isa->name)) && c.runs()) {
            chosen = c.isa;
            return true;
        }
    }
    return false;
}

}  // namespace fastrnn::cpu
