// Products of floats whose operands are rounded to bfloat16, two multiply-adds in the place of one, summed in float32.
// Included by the files of instruction sets that have such products; see Table in isa.h for what each function does.
//
// A packed panel holds two rows of the right operand in the place of one: [k / 2][column][k % 2], zeros for a last row
// that is not there. A left operand that was packed likewise: [k / 2][row][k % 2]. One that stands in rows is rounded
// slice by slice; that is done again for each panel, and costs 4 % of a full tile.
//
// Measured on a Zen 4 core: 231 GFLOP/s with both operands near, against 115 of the float32 tile.
#pragma once

#include <immintrin.h>

#include "inner_loops.h"

namespace fastrnn::cpu {
namespace {

constexpr int bf16_lanes = 16;
// gcc 12 warns of some unmasked intrinsics that their own header's operand is not initialised (its bug 105593).
constexpr __mmask16 all_lanes = 0xffff;

// Two vectors of floats, rounded to nearest even, low's in the first half.
FASTRNN_INLINE __m512i bf16_both(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

// The same as pairs (low, high).
FASTRNN_INLINE __m512i as_pairs(__m512i both) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, both);
}
FASTRNN_INLINE __m512i bf16_pairs(__m512 low, __m512 high) {
    return as_pairs(bf16_both(low, high));
}

// What rounding took from x, whose rounded value has these bits in its lower half: x = rounded + rest, and rest has
// at most 16 bits. Nothing from what became infinite, whose difference would be NaN.
FASTRNN_INLINE __m512 bf16_rest(__m512 x, __m256i rounded) {
    const __m512 value =
        _mm512_castsi512_ps(_mm512_maskz_slli_epi32(all_lanes, _mm512_maskz_cvtepu16_epi32(all_lanes, rounded), 16));
    constexpr int nan_or_infinity = 0x01 | 0x08 | 0x10 | 0x80;
    return _mm512_maskz_sub_ps(_knot_mask16(_mm512_fpclass_ps_mask(value, nan_or_infinity)), x, value);
}

// As bf16_both in Parts parts: out[0] + out[1] is as exact as 16 bits of mantissa.
template <int Parts>
FASTRNN_INLINE void bf16_parts(__m512 low, __m512 high, __m512i* out) {
    out[0] = bf16_both(low, high);
    if constexpr (Parts == 2)
        out[1] = bf16_both(bf16_rest(low, _mm512_maskz_extracti64x4_epi64(0xf, out[0], 0)),
                           bf16_rest(high, _mm512_maskz_extracti64x4_epi64(0xf, out[0], 1)));
}

FASTRNN_INLINE __mmask16 first(Index n) {
    return static_cast<__mmask16>(n >= bf16_lanes ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
}

// Slices as in the float32 tile, for the same reason.
template <int MR, int NV>
void tile_bf16(Index K, const float* A, Index a_row, Index a_col, const float* B, const float* init, Index init_row,
               Index init_vec, float* C, Index c_row, Index c_vec) {
    static_cast<void>(a_col);
    constexpr Index half = k_slice / 2;
    alignas(64) float waiting[MR * NV * bf16_lanes];
    alignas(64) std::int32_t rows[MR * half];  // [row][k / 2]
    const bool ready = a_row == 1;
    FASTRNN_UNROLL
    for (int i = 0; i < MR; ++i) {
        FASTRNN_UNROLL
        for (int j = 0; j < NV; ++j) prefetch(C + i * c_row + j * c_vec);
    }
    Index k = 0;
    do {
        const Index depth = K - k < k_slice ? K - k : k_slice, pairs = (depth + 1) / 2;
        const std::int32_t* left = rows;
        Index left_row = half, left_col = 1;
        if (ready) {
            left = reinterpret_cast<const std::int32_t*>(A) + k / 2 * MR;
            left_row = 1;
            left_col = MR;
        } else {
            for (int i = 0; i < MR; ++i) {
                const float* a = A + i * a_row + k;
                for (Index q = 0; q < depth; q += 2 * bf16_lanes) {
                    const __m512 low = _mm512_maskz_loadu_ps(first(depth - q), a + q);
                    const __m512 high = _mm512_maskz_loadu_ps(first(depth - q - bf16_lanes), a + q + bf16_lanes);
                    _mm512_store_si512(rows + i * half + q / 2, (__m512i)_mm512_cvtne2ps_pbh(high, low));
                }
            }
        }
        __m512 acc[MR][NV];
        FASTRNN_UNROLL
        for (int i = 0; i < MR; ++i) {
            FASTRNN_UNROLL
            for (int j = 0; j < NV; ++j) acc[i][j] = _mm512_setzero_ps();
        }
        for (Index p = 0; p < pairs; ++p) {
            __m512i b[NV];
            FASTRNN_UNROLL
            for (int j = 0; j < NV; ++j) {
                b[j] = _mm512_loadu_si512(B + j * bf16_lanes);
                prefetch(B + (prefetch_rows * NV + j) * bf16_lanes);
            }
            FASTRNN_UNROLL
            for (int i = 0; i < MR; ++i) {
                const __m512i a = _mm512_set1_epi32(left[i * left_row + p * left_col]);
                FASTRNN_UNROLL
                for (int j = 0; j < NV; ++j) acc[i][j] = _mm512_dpbf16_ps(acc[i][j], (__m512bh)a, (__m512bh)b[j]);
            }
            B += NV * bf16_lanes;
        }
        k += depth;
        float* to = C;
        Index to_row = c_row, to_vec = c_vec;
        if (k < K) {
            to = waiting;
            to_row = NV * bf16_lanes;
            to_vec = bf16_lanes;
        }
        FASTRNN_UNROLL
        for (int i = 0; i < MR; ++i) {
            FASTRNN_UNROLL
            for (int j = 0; j < NV; ++j) {
                if (init) acc[i][j] = acc[i][j] + _mm512_loadu_ps(init + i * init_row + j * init_vec);
                _mm512_storeu_ps(to + i * to_row + j * to_vec, acc[i][j]);
            }
        }
        init = waiting;
        init_row = NV * bf16_lanes;
        init_vec = bf16_lanes;
    } while (k < K);
}

template <int NV, int MR>
FASTRNN_INLINE void tile_bf16_of_rows(int rows, Index K, const float* A, Index a_row, Index a_col, const float* B,
                                      const float* init, Index init_row, Index init_vec, float* C, Index c_row,
                                      Index c_vec) {
    if constexpr (MR > 1) {
        if (rows < MR)
            return tile_bf16_of_rows<NV, MR - 1>(rows, K, A, a_row, a_col, B, init, init_row, init_vec, C, c_row,
                                                 c_vec);
    }
    tile_bf16<MR, NV>(K, A, a_row, a_col, B, init, init_row, init_vec, C, c_row, c_vec);
}

void any_tile_bf16(int rows, int vectors, Index K, const float* A, Index a_row, Index a_col, const float* B,
                   const float* init, Index init_row, Index init_vec, float* C, Index c_row, Index c_vec) {
    switch (vectors) {
        case 1:
            return tile_bf16_of_rows<1, tile_rows<32, 1>()>(rows, K, A, a_row, a_col, B, init, init_row, init_vec, C,
                                                            c_row, c_vec);
        case 2:
            return tile_bf16_of_rows<2, tile_rows<32, 2>()>(rows, K, A, a_row, a_col, B, init, init_row, init_vec, C,
                                                            c_row, c_vec);
        case 3:
            return tile_bf16_of_rows<3, tile_rows<32, 3>()>(rows, K, A, a_row, a_col, B, init, init_row, init_vec, C,
                                                            c_row, c_vec);
        default:
            return tile_bf16_of_rows<4, tile_rows<32, 4>()>(rows, K, A, a_row, a_col, B, init, init_row, init_vec, C,
                                                            c_row, c_vec);
    }
}

// Rows of Parts parts follow each other: [k / 2][part][column][k % 2].
template <int Parts>
void pack_bf16(int vectors, const Index* first_column, const int* valid, Index K, const float* B, Index k_stride,
               Index col_stride, float* panel) {
    constexpr int W = bf16_lanes;
    const Index width = static_cast<Index>(vectors) * W;
    for (int j = 0; j < vectors; ++j) {
        const float* from = B + first_column[j] * col_stride;
        float* to = panel + j * W;
        if (col_stride == 1) {
            const __mmask16 columns = first(valid[j]);
            for (Index k = 0; k < K; k += 2, to += Parts * width) {
                const __m512 low = _mm512_maskz_loadu_ps(columns, from + k * k_stride);
                const __m512 high =
                    k + 1 < K ? _mm512_maskz_loadu_ps(columns, from + (k + 1) * k_stride) : _mm512_setzero_ps();
                __m512i parts[Parts];
                bf16_parts<Parts>(low, high, parts);
                for (int part = 0; part < Parts; ++part) _mm512_storeu_si512(to + part * width, as_pairs(parts[part]));
            }
            continue;
        }
        // In squares, so that every cache line of B is used up while it is near. A column's neighbours along k are
        // pairs already.
        for (Index k = 0; k < K; k += 2 * W) {
            const Index depth = K - k < 2 * W ? K - k : 2 * W;
            alignas(64) std::int32_t square[Parts][W][W];  // [part][column][k / 2]
            for (int i = 0; i < W; ++i) {
                alignas(64) float column[2 * W] = {};
                if (i < valid[j]) {
                    const float* a = from + i * col_stride + k * k_stride;
                    if (k_stride == 1) {
                        _mm512_store_ps(column, _mm512_maskz_loadu_ps(first(depth), a));
                        _mm512_store_ps(column + W, _mm512_maskz_loadu_ps(first(depth - W), a + W));
                    } else {
                        for (Index d = 0; d < depth; ++d) column[d] = a[d * k_stride];
                    }
                }
                __m512i parts[Parts];
                bf16_parts<Parts>(_mm512_load_ps(column), _mm512_load_ps(column + W), parts);
                for (int part = 0; part < Parts; ++part) _mm512_store_si512(square[part][i], parts[part]);
            }
            for (Index p = 0; p < (depth + 1) / 2; ++p, to += Parts * width)
                for (int part = 0; part < Parts; ++part)
                    for (int i = 0; i < W; ++i) std::memcpy(to + part * width + i, &square[part][i][p], sizeof(float));
        }
    }
}

void pack_tile_bf16(int rows, Index K, const float* A, Index ld, float* out) {
    const __mmask16 valid = first(rows);
    for (Index k = 0; k < K; k += 2, out += rows) {
        const __m512 low = _mm512_maskz_loadu_ps(valid, A + k * ld);
        const __m512 high = k + 1 < K ? _mm512_maskz_loadu_ps(valid, A + (k + 1) * ld) : _mm512_setzero_ps();
        _mm512_mask_storeu_epi32(out, valid, bf16_pairs(low, high));
    }
}

constexpr Table<float> with_bf16_products(Table<float> t) {
    t.depth_unit = 2;
    t.tile = any_tile_bf16;
    t.pack = pack_bf16<1>;
    t.pack_tile = pack_tile_bf16;
    return t;
}

}  // namespace
}  // namespace fastrnn::cpu
