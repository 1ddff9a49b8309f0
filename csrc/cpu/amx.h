// Products of floats on AMX's tile registers, whose operands are bfloat16 numbers and whose sums float32.
// Included by isa_amx.cpp; see Table in isa.h for what each function does.
//
// medium: operands are rounded to bfloat16, as in bf16.h. high: each is split into the sum of two bfloat16 numbers, x =
// hi + lo, and a product is hi hi + hi lo + lo hi, which is as exact as 15 to 16 bits of mantissa; what is left out,
// lo lo, is at most 2^-16 of it. highest stays the float32 tile: three parts, with six products or nine, would carry
// float32's mantissa but neither its denormals nor its infinities, and no processor was at hand to tell whether that
// is faster.
//
// Extremes. Denormal numbers count as zero. From about 3.39e38 (FLT_MAX is 3.40e38) a number rounds to infinity. An
// infinity times the parts of a number can be NaN (its lo may be zero, or of the other sign), where float32 has an
// infinity: sums that come out NaN in `high` are computed again in float32.
//
// Panels are those of bf16.h: 16 rows of one, [k / 2][part][column][k % 2], are what a tile register takes as the right
// operand. The left operand is [k / 32][part][row][k % 32], zeros after the last row and the last k. A last block of
// fewer than 32 k is copied first: what stands behind a panel could be NaN, and zero times NaN is NaN.
//
// Counted, not measured: no processor with AMX was at hand. One instruction is 8192 multiply-adds in 16 cycles, 16
// times as many a cycle as two units of AVX-512 FMA do; four of them (a block of medium) need four registers loaded, in
// high twelve need eight.
#pragma once

#include <algorithm>
#include <bit>

#include "amx_tiles.h"
#include "bf16.h"

namespace fastrnn::cpu {
namespace {

constexpr Index block_depth = 32;  // k of one tile register
constexpr Index block_pairs = block_depth / 2;
constexpr int register_floats = tiles::rows * tiles::row_bytes / 4;
constexpr int most_registers = 2;  // of a left operand: rows of a tile are at most twice those of a register
constexpr int most_rows = most_registers * tiles::rows;
constexpr int most_width = max_vectors * bf16_lanes;
// k whose left operand is rounded at a time: 32 rows of them are 16 KiB a part.
constexpr Index left_slice = 256;

// Tile registers belong to the thread: configured by its first product of a kernel, given back when its part of the
// kernel is done. Other code of the thread then finds them as it expects them, and the system saves no registers of
// threads that sleep.
thread_local bool tiles_in_use = false;

inline void enter_tiles() {
    if (tiles_in_use) return;
    tiles::configure();
    tiles_in_use = true;
}
void leave_tiles() {
    if (!tiles_in_use) return;
    tiles::release();
    tiles_in_use = false;
}

// The blocks of k of an operand: the whole ones in a row, then perhaps a copy of the last.
struct Blocks {
    const float* first;
    Index step, whole;
    const float* last;
    const float* at(Index b) const { return b < whole ? first + b * step : last; }
};

// Registers 0 to 3 hold sums, [row][column]; 4 and 5 the left operand, 6 and 7 the right one.
template <int High>
void load_left(const float* a) {
    tiles::load<4>(a, tiles::row_bytes);
    if constexpr (High > 1) tiles::load<5>(a + register_floats, tiles::row_bytes);
}
template <int Wide>
void load_right(const float* b, Index bytes) {
    tiles::load<6>(b, bytes);
    if constexpr (Wide > 1) tiles::load<7>(b + bf16_lanes, bytes);
}
template <int High, int Wide>
void multiply_registers() {
    tiles::multiply<0, 4, 6>();
    if constexpr (Wide > 1) tiles::multiply<1, 4, 7>();
    if constexpr (High > 1) tiles::multiply<2, 5, 6>();
    if constexpr (High > 1 && Wide > 1) tiles::multiply<3, 5, 7>();
}
template <int Number>
void begin_sum(const float* sum, bool fresh) {
    if (fresh)
        tiles::zero<Number>();
    else
        tiles::load<Number>(sum, most_width * sizeof(float));
}
template <int Number>
void end_sum(float* sum) {
    tiles::store<Number>(sum, most_width * sizeof(float));
}

// sums (High registers, Wide registers) += left right, or = where they are fresh. Rows of a part of `right` are
// right_row floats apart, its parts `width`.
template <int Parts, int High, int Wide>
void multiply_blocks(Index blocks, const Blocks& left, const Blocks& right, Index column, Index right_row, Index width,
                     float* sums, bool fresh) {
    constexpr Index left_part = High * register_floats, lower = tiles::rows * most_width;
    const Index bytes = right_row * static_cast<Index>(sizeof(float));
    begin_sum<0>(sums, fresh);
    if constexpr (Wide > 1) begin_sum<1>(sums + bf16_lanes, fresh);
    if constexpr (High > 1) begin_sum<2>(sums + lower, fresh);
    if constexpr (High > 1 && Wide > 1) begin_sum<3>(sums + lower + bf16_lanes, fresh);
    for (Index b = 0; b < blocks; ++b) {
        const float *l = left.at(b), *r = right.at(b) + column;
        load_left<High>(l);
        if constexpr (Parts == 2) {
            load_right<Wide>(r + width, bytes);
            multiply_registers<High, Wide>();
        }
        load_right<Wide>(r, bytes);
        multiply_registers<High, Wide>();
        if constexpr (Parts == 2) {
            load_left<High>(l + left_part);
            multiply_registers<High, Wide>();
        }
    }
    end_sum<0>(sums);
    if constexpr (Wide > 1) end_sum<1>(sums + bf16_lanes);
    if constexpr (High > 1) end_sum<2>(sums + lower);
    if constexpr (High > 1 && Wide > 1) end_sum<3>(sums + lower + bf16_lanes);
}

// Rows of A as blocks of a left operand of `height` rows.
template <int Parts>
void round_left(int rows, int height, Index depth, const float* A, Index a_row, float* left) {
    const Index part_size = height * block_pairs;
    for (int i = 0; i < rows; ++i) {
        float* to = left + i * block_pairs;
        for (Index k = 0; k < depth; k += block_depth) {
            const float* a = A + i * a_row + k;
            __m512i parts[Parts];
            bf16_parts<Parts>(_mm512_maskz_loadu_ps(first(depth - k), a),
                              _mm512_maskz_loadu_ps(first(depth - k - bf16_lanes), a + bf16_lanes), parts);
            for (int part = 0; part < Parts; ++part, to += part_size) _mm512_store_si512(to, parts[part]);
        }
    }
}

// The same out of what pack_tile packed, whose block b is at A + b * Parts * block_pairs * rows.
template <int Parts>
void copy_left(int rows, int height, Index depth, const float* A, float* left) {
    for (Index k = 0; k < depth; k += block_depth) {
        const Index here = std::min(block_depth, depth - k), pairs = (here + 1) / 2;
        for (int part = 0; part < Parts; ++part, left += height * block_pairs)
            for (int i = 0; i < rows; ++i, A += pairs)
                _mm512_store_ps(left + i * block_pairs, _mm512_maskz_loadu_ps(first(pairs), A));
    }
}

void clear_rows(int rows, int height, Index blocks, float* left) {
    for (Index b = 0; b < blocks; ++b, left += height * block_pairs)
        for (int i = rows; i < height; ++i) _mm512_store_ps(left + i * block_pairs, _mm512_setzero_ps());
}

// One row of the result in float32, for 16 columns, from operands in two parts.
__m512 row_in_float32(int row, int rows, Index K, const float* A, Index a_row, const float* B, Index width) {
    const auto half = [](std::uint32_t pair, Index k) {
        return std::bit_cast<float>(k % 2 ? pair & 0xffff0000u : pair << 16);
    };
    __m512 sum = _mm512_setzero_ps();
    for (Index k = 0; k < K; ++k) {
        float a;
        if (a_row == 1) {
            const Index begin = k / block_depth * block_depth, pairs = (std::min(block_depth, K - begin) + 1) / 2;
            const float* at = A + begin * rows + row * pairs + (k - begin) / 2;
            a = half(std::bit_cast<std::uint32_t>(at[0]), k) + half(std::bit_cast<std::uint32_t>(at[rows * pairs]), k);
        } else {
            a = A[row * a_row + k];
        }
        const float* b = B + k / 2 * 2 * width;
        __m512i hi = _mm512_loadu_si512(b), lo = _mm512_loadu_si512(b + width);
        hi = k % 2 ? _mm512_and_si512(hi, _mm512_set1_epi32(-0x10000)) : _mm512_maskz_slli_epi32(all_lanes, hi, 16);
        lo = k % 2 ? _mm512_and_si512(lo, _mm512_set1_epi32(-0x10000)) : _mm512_maskz_slli_epi32(all_lanes, lo, 16);
        const __m512 value = _mm512_add_ps(_mm512_castsi512_ps(hi), _mm512_castsi512_ps(lo));
        sum = _mm512_fmadd_ps(_mm512_set1_ps(a), value, sum);
    }
    return sum;
}

// Two vectors of columns at a time: with two registers of rows their sums take half of the registers.
template <int Parts, int High>
void multiply_columns(int vectors, Index blocks, const Blocks& left, const Blocks& right, float* sums, bool fresh) {
    const Index width = Index(vectors) * bf16_lanes, row = Parts * width;
    for (int j = 0; j < vectors; j += 2) {
        const Index column = Index(j) * bf16_lanes;
        if (j + 1 < vectors)
            multiply_blocks<Parts, High, 2>(blocks, left, right, column, row, width, sums + column, fresh);
        else
            multiply_blocks<Parts, High, 1>(blocks, left, right, column, row, width, sums + column, fresh);
    }
}

template <int Parts>
void amx_tile(int rows, int vectors, Index K, const float* A, Index a_row, Index a_col, const float* B,
              const float* init, Index init_row, Index init_vec, float* C, Index c_row, Index c_vec) {
    static_cast<void>(a_col);
    alignas(64) float sums[most_rows * most_width];
    alignas(64) float left_copy[left_slice / 2 * Parts * most_rows];
    alignas(64) float right_copy[block_pairs * Parts * most_width];
    const Index width = Index(vectors) * bf16_lanes;
    const int height = rows > tiles::rows ? most_rows : tiles::rows;
    const Index left_block = Parts * height * block_pairs, right_block = block_pairs * Parts * width;
    const bool ready = a_row == 1;                  // packed
    const bool in_place = ready && rows == height;  // as tile registers take it
    enter_tiles();
    Index k = 0;
    do {
        const Index depth = in_place ? K : std::min(left_slice, K - k), whole = depth / block_depth,
                    rest = depth % block_depth, blocks = whole + (rest != 0);
        Blocks left = {left_copy, left_block, blocks, nullptr};
        const float* a = A + (ready ? k / 2 * Parts * rows : k);
        if (in_place) {
            left = {a, left_block, whole, left_copy};
            copy_left<Parts>(rows, height, rest, a + whole * left_block, left_copy);
        } else {
            if (k == 0) clear_rows(rows, height, blocks * Parts, left_copy);
            if (ready)
                copy_left<Parts>(rows, height, depth, a, left_copy);
            else
                round_left<Parts>(rows, height, depth, a, a_row, left_copy);
        }
        const Blocks right = {B + k / 2 * Parts * width, right_block, whole, right_copy};
        if (rest) {
            const Index there = (rest + 1) / 2 * Parts * width;
            std::copy_n(right.first + whole * right_block, there, right_copy);
            std::fill(right_copy + there, right_copy + right_block, 0.0f);
        }
        if (height > tiles::rows)
            multiply_columns<Parts, 2>(vectors, blocks, left, right, sums, k == 0);
        else
            multiply_columns<Parts, 1>(vectors, blocks, left, right, sums, k == 0);
        k += depth;
    } while (k < K);
    for (int i = 0; i < rows; ++i)
        for (int j = 0; j < vectors; ++j) {
            __m512 sum = _mm512_load_ps(sums + i * most_width + j * bf16_lanes);
            if constexpr (Parts == 2) {
                const __mmask16 lost = _mm512_cmp_ps_mask(sum, sum, _CMP_UNORD_Q);
                if (lost) [[unlikely]]
                    sum =
                        _mm512_mask_mov_ps(sum, lost, row_in_float32(i, rows, K, A, a_row, B + j * bf16_lanes, width));
            }
            if (init) sum = _mm512_add_ps(sum, _mm512_loadu_ps(init + i * init_row + j * init_vec));
            _mm512_storeu_ps(C + i * c_row + j * c_vec, sum);
        }
}

// The left operand's blocks, without zeros after the last row and the last pair of k: [k / 32][part][row][k % 32].
template <int Parts>
void amx_pack_tile(int rows, Index K, const float* A, Index ld, float* out) {
    alignas(64) float across[Parts][block_pairs][most_rows];
    for (Index k = 0; k < K; k += block_depth) {
        const Index depth = std::min(block_depth, K - k), pairs = (depth + 1) / 2;
        for (Index p = 0; p < pairs; ++p)
            for (int i = 0; i < rows; i += bf16_lanes) {
                const float* a = A + (k + 2 * p) * ld + i;
                const __mmask16 valid = first(rows - i);
                __m512i parts[Parts];
                bf16_parts<Parts>(_mm512_maskz_loadu_ps(valid, a),
                                  _mm512_maskz_loadu_ps(2 * p + 1 < depth ? valid : __mmask16(0), a + ld), parts);
                for (int part = 0; part < Parts; ++part) _mm512_store_si512(across[part][p] + i, as_pairs(parts[part]));
            }
        for (int part = 0; part < Parts; ++part, out += pairs * rows)
            transpose<Simd<float, bf16_lanes>>(pairs, Index(rows), across[part][0], Index(most_rows), out, pairs);
    }
}

template <int Parts>
constexpr Table<float> with_amx_products(Table<float> t) {
    for (int vectors = 1; vectors <= max_vectors; ++vectors) t.max_rows[vectors] = most_rows;
    t.depth_unit = 2;
    t.unit_size = Parts;
    t.tile = amx_tile<Parts>;
    t.pack = pack_bf16<Parts>;
    t.pack_tile = amx_pack_tile<Parts>;
    return t;
}

}  // namespace
}  // namespace fastrnn::cpu
