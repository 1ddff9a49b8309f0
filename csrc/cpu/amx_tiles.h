// The eight tile registers of AMX-BF16, 16 rows of 64 bytes each: configured, loaded, stored, multiplied. Or, with
// FASTRNN_EMULATE_AMX, the same in C++ and in memory, so that what stands on them is tested where no processor has
// them.
//
// The instructions are written out instead of taken from immintrin.h: gcc's intrinsics paste a tile's number as text,
// so that it cannot be a template's, and do not tell the compiler (gcc 12) that a load reads memory.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "isa.h"

namespace fastrnn::cpu {
namespace {
namespace tiles {

constexpr int rows = 16, row_bytes = 64;

#if !defined(FASTRNN_EMULATE_AMX)

struct alignas(64) Configuration {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {row_bytes, row_bytes, row_bytes, row_bytes, row_bytes, row_bytes, row_bytes, row_bytes};
    std::uint8_t height[16] = {rows, rows, rows, rows, rows, rows, rows, rows};
};
static_assert(sizeof(Configuration) == 64);
constexpr Configuration configuration;

inline void configure() {
    __asm__ volatile("ldtilecfg %0" : : "m"(configuration));
}
inline void release() {
    __asm__ volatile("tilerelease");
}
template <int Tile>
void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(Tile));
}
// Rows are `stride` bytes apart.
template <int Tile>
void load(const void* from, Index stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(Tile) : "memory");
}
template <int Tile>
void store(void* to, Index stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(Tile) : "memory");
}
// Sum (16, 16 floats) += Left (16, 32) Right (32, 16). A row of Left holds 32 bfloat16 numbers; row p of Right holds
// the pairs of rows 2 p and 2 p + 1, column by column.
template <int Sum, int Left, int Right>
void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(Sum), "i"(Left), "i"(Right));
}

#else

struct alignas(64) Tile {
    std::uint32_t word[rows][row_bytes / 4];
};
thread_local Tile registers[8];
thread_local bool configured = false;

inline void configure() {
    for (Tile& tile : registers) tile = Tile{};
    configured = true;
}
inline void release() {
    configured = false;
}
template <int Number>
Tile& tile() {
    if (!configured) __builtin_trap();  // as the processor does
    return registers[Number];
}
template <int Number>
void zero() {
    tile<Number>() = Tile{};
}
template <int Number>
void load(const void* from, Index stride) {
    for (int r = 0; r < rows; ++r)
        std::memcpy(tile<Number>().word[r], static_cast<const char*>(from) + r * stride, row_bytes);
}
template <int Number>
void store(void* to, Index stride) {
    for (int r = 0; r < rows; ++r) std::memcpy(static_cast<char*>(to) + r * stride, tile<Number>().word[r], row_bytes);
}

// Denormal operands and results count as zeros, whatever the thread's rounding and flushing modes.
inline float flushed(float x) {
    return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}
// As Intel's manual defines TDPBF16PS: the products of even and of odd k are summed apart, each by fused multiply-adds
// that begin at zero; the two sums are added, and that sum to the destination.
template <int Sum, int Left, int Right>
void multiply() {
    constexpr int columns = row_bytes / 4;
    const Tile &left = tile<Left>(), &right = tile<Right>();
    const auto low = [](std::uint32_t pair) { return flushed(std::bit_cast<float>(pair << 16)); };
    const auto high = [](std::uint32_t pair) { return flushed(std::bit_cast<float>(pair & 0xffff0000u)); };
    for (int r = 0; r < rows; ++r) {
        float even[columns] = {}, odd[columns] = {};
        for (int p = 0; p < columns; ++p) {
            const float a = low(left.word[r][p]), b = high(left.word[r][p]);
            for (int c = 0; c < columns; ++c) {
                even[c] = flushed(std::fma(a, low(right.word[p][c]), even[c]));
                odd[c] = flushed(std::fma(b, high(right.word[p][c]), odd[c]));
            }
        }
        for (int c = 0; c < columns; ++c) {
            std::uint32_t& word = tile<Sum>().word[r][c];
            word =
                std::bit_cast<std::uint32_t>(flushed(flushed(std::bit_cast<float>(word)) + flushed(even[c] + odd[c])));
        }
    }
}

#endif

}  // namespace tiles
}  // namespace
}  // namespace fastrnn::cpu
