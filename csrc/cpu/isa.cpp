// The list of instruction sets, best first, and the choice among them.
#include "isa.h"

#include <atomic>
#include <cstring>

namespace fastrnn::cpu {

extern const Isa isa_portable;
#if defined(FASTRNN_X86_VARIANTS)
extern const Isa isa_avx2;
extern const Isa isa_avx512;
#if defined(FASTRNN_X86_BF16)
extern const Isa isa_avx512_bf16;
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
bool always() {
    return true;
}

const Candidate candidates[] = {
#if defined(FASTRNN_X86_VARIANTS)
#if defined(FASTRNN_X86_BF16)
    {&isa_avx512_bf16, has_avx512_bf16},
#endif
    {&isa_avx512, has_avx512},
    {&isa_avx2, has_avx2},
#endif
    {&isa_portable, always},
};
constexpr int count = sizeof candidates / sizeof candidates[0];

const Isa* chosen = &isa_portable;
std::atomic<bool> medium{false};

}  // namespace

const Isa& isa() {
    return *chosen;
}

void allow_medium(bool allowed) {
    medium.store(allowed, std::memory_order_relaxed);
}
bool medium_allowed() {
    return medium.load(std::memory_order_relaxed);
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
        if (c.runs() && (!name || !std::strcmp(name, c.isa->name))) {
            chosen = c.isa;
            return true;
        }
    }
    return false;
}

}  // namespace fastrnn::cpu
