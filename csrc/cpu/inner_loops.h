// The loops that are compiled once per instruction set. Included by isa_<name>.cpp only; see isa.h for what each does.
//
// Tile sizes. A tile keeps vectors x rows accumulators in registers and needs, per k, `vectors` loads of B and `rows`
// broadcasts of A. With 32 registers 24 accumulators leave room for both; with 16 registers 12 do.
#pragma once

#include <math.h>

#include "isa.h"
#include "simd.h"

namespace fastrnn::cpu {
namespace {

#if defined(__GNUC__)
#define FASTRNN_UNROLL _Pragma("GCC unroll 32")
#else
#define FASTRNN_UNROLL
#endif
#if defined(__clang__)
#define FASTRNN_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define FASTRNN_INDEPENDENT _Pragma("GCC ivdep")
#else
#define FASTRNN_INDEPENDENT
#endif

// A sum over k is taken in slices of this many, which are then added up: its rounding error grows with the slice and
// with the number of slices, not with their product. Shorter slices cost more passes over the accumulators.
constexpr Index k_slice = 64;

template <int Registers, int NV>
constexpr int tile_rows() {
    return Registers >= 32 ? (NV == 4 ? 6 : NV == 3 ? 8 : 12) : (NV == 4 ? 3 : NV == 3 ? 4 : NV == 2 ? 6 : 8);
}

// How far ahead of its use a row of a panel is fetched into the L1.
constexpr Index prefetch_rows = 8;

FASTRNN_INLINE void prefetch(const void* p) {
#if defined(__GNUC__)
    __builtin_prefetch(p);
#else
    static_cast<void>(p);
#endif
}

template <class S, int MR, int NV>
FASTRNN_INLINE void tile(Index K, const typename S::Scalar* A, Index a_row, Index a_col, const typename S::Scalar* B,
                         const typename S::Scalar* init, Index init_row, Index init_vec, typename S::Scalar* C,
                         Index c_row, Index c_vec) {
    using T = typename S::Scalar;
    // Three rows share a pointer: with one each there would be more pointers than registers.
    const T* row[(MR + 2) / 3];
    FASTRNN_UNROLL
    for (int i = 0; i < MR; i += 3) row[i / 3] = A + i * a_row;
    FASTRNN_UNROLL
    for (int i = 0; i < MR; ++i) {
        FASTRNN_UNROLL
        for (int j = 0; j < NV; ++j) prefetch(C + i * c_row + j * c_vec);
    }
    // Between slices the sums wait here: rows of C are often a power of two apart, and would evict each other.
    alignas(64) T waiting[MR * NV * S::lanes];
    Index k = 0;
    do {
        const Index end = K - k < k_slice ? K : k + k_slice;
        S acc[MR][NV];
        FASTRNN_UNROLL
        for (int i = 0; i < MR; ++i) {
            FASTRNN_UNROLL
            for (int j = 0; j < NV; ++j) acc[i][j] = S::zero();
        }
        for (; k < end; ++k) {
            S b[NV];
            FASTRNN_UNROLL
            for (int j = 0; j < NV; ++j) {
                b[j] = S::load(B + j * S::lanes);
                prefetch(B + (prefetch_rows * NV + j) * S::lanes);
            }
            FASTRNN_UNROLL
            for (int i = 0; i < MR; ++i) {
                const S a = S::all(row[i / 3][i % 3 * a_row]);
                FASTRNN_UNROLL
                for (int j = 0; j < NV; ++j) acc[i][j] = a * b[j] + acc[i][j];
            }
            FASTRNN_UNROLL
            for (int i = 0; i < MR; i += 3) row[i / 3] += a_col;
            B += NV * S::lanes;
        }
        T* to = C;
        Index to_row = c_row, to_vec = c_vec;
        if (k < K) {
            to = waiting;
            to_row = NV * S::lanes;
            to_vec = S::lanes;
        }
        FASTRNN_UNROLL
        for (int i = 0; i < MR; ++i) {
            FASTRNN_UNROLL
            for (int j = 0; j < NV; ++j) {
                if (init) acc[i][j] = acc[i][j] + S::load(init + i * init_row + j * init_vec);
                acc[i][j].store(to + i * to_row + j * to_vec);
            }
        }
        init = waiting;
        init_row = NV * S::lanes;
        init_vec = S::lanes;
    } while (k < K);
}

// tile for few rows and a B that is used only once, where packing it would cost more than the product: row k of B is at
// B + k * b_row, its vector j at + j * b_vec.
template <class S, int MR, int NV>
void stream(Index K, const typename S::Scalar* A, Index a_row, const typename S::Scalar* B, Index b_row, Index b_vec,
            const typename S::Scalar* init, Index init_row, Index init_vec, typename S::Scalar* C, Index c_row,
            Index c_vec) {
    Index k = 0;
    do {
        const Index end = K - k < k_slice ? K : k + k_slice;
        S acc[MR][NV];
        FASTRNN_UNROLL
        for (int i = 0; i < MR; ++i) {
            FASTRNN_UNROLL
            for (int j = 0; j < NV; ++j) acc[i][j] = S::zero();
        }
        for (; k < end; ++k) {
            FASTRNN_UNROLL
            for (int j = 0; j < NV; ++j) {
                const S b = S::load(B + k * b_row + j * b_vec);
                FASTRNN_UNROLL
                for (int i = 0; i < MR; ++i) acc[i][j] = S::all(A[i * a_row + k]) * b + acc[i][j];
            }
        }
        FASTRNN_UNROLL
        for (int i = 0; i < MR; ++i) {
            FASTRNN_UNROLL
            for (int j = 0; j < NV; ++j) {
                acc[i][j] = acc[i][j] + S::load(init + i * init_row + j * init_vec);
                acc[i][j].store(C + i * c_row + j * c_vec);
            }
        }
        init = C;
        init_row = c_row;
        init_vec = c_vec;
    } while (k < K);
}

template <class S, int NV>
void stream_rows(int rows, Index K, const typename S::Scalar* A, Index a_row, const typename S::Scalar* B, Index b_row,
                 Index b_vec, const typename S::Scalar* init, Index init_row, Index init_vec, typename S::Scalar* C,
                 Index c_row, Index c_vec) {
    switch (rows) {
        case 1:
            return stream<S, 1, NV>(K, A, a_row, B, b_row, b_vec, init, init_row, init_vec, C, c_row, c_vec);
        case 2:
            return stream<S, 2, NV>(K, A, a_row, B, b_row, b_vec, init, init_row, init_vec, C, c_row, c_vec);
        default:
            return stream<S, max_streamed_rows, NV>(K, A, a_row, B, b_row, b_vec, init, init_row, init_vec, C, c_row,
                                                    c_vec);
    }
}

template <class S>
void any_stream(int rows, int vectors, Index K, const typename S::Scalar* A, Index a_row, const typename S::Scalar* B,
                Index b_row, Index b_vec, const typename S::Scalar* init, Index init_row, Index init_vec,
                typename S::Scalar* C, Index c_row, Index c_vec) {
    switch (vectors) {
        case 1:
            return stream_rows<S, 1>(rows, K, A, a_row, B, b_row, b_vec, init, init_row, init_vec, C, c_row, c_vec);
        case 2:
            return stream_rows<S, 2>(rows, K, A, a_row, B, b_row, b_vec, init, init_row, init_vec, C, c_row, c_vec);
        case 3:
            return stream_rows<S, 3>(rows, K, A, a_row, B, b_row, b_vec, init, init_row, init_vec, C, c_row, c_vec);
        default:
            return stream_rows<S, 4>(rows, K, A, a_row, B, b_row, b_vec, init, init_row, init_vec, C, c_row, c_vec);
    }
}

// Calls tile<rows, NV> for a number of rows known at run time.
template <class S, int NV, int MR>
FASTRNN_INLINE void tile_of_rows(int rows, Index K, const typename S::Scalar* A, Index a_row, Index a_col,
                                 const typename S::Scalar* B, const typename S::Scalar* init, Index init_row,
                                 Index init_vec, typename S::Scalar* C, Index c_row, Index c_vec) {
    if constexpr (MR > 1) {
        if (rows < MR)
            return tile_of_rows<S, NV, MR - 1>(rows, K, A, a_row, a_col, B, init, init_row, init_vec, C, c_row, c_vec);
    }
    tile<S, MR, NV>(K, A, a_row, a_col, B, init, init_row, init_vec, C, c_row, c_vec);
}

template <class S, int Registers>
void any_tile(int rows, int vectors, Index K, const typename S::Scalar* A, Index a_row, Index a_col,
              const typename S::Scalar* B, const typename S::Scalar* init, Index init_row, Index init_vec,
              typename S::Scalar* C, Index c_row, Index c_vec) {
    switch (vectors) {
        case 1:
            return tile_of_rows<S, 1, tile_rows<Registers, 1>()>(rows, K, A, a_row, a_col, B, init, init_row, init_vec,
                                                                 C, c_row, c_vec);
        case 2:
            return tile_of_rows<S, 2, tile_rows<Registers, 2>()>(rows, K, A, a_row, a_col, B, init, init_row, init_vec,
                                                                 C, c_row, c_vec);
        case 3:
            return tile_of_rows<S, 3, tile_rows<Registers, 3>()>(rows, K, A, a_row, a_col, B, init, init_row, init_vec,
                                                                 C, c_row, c_vec);
        default:
            return tile_of_rows<S, 4, tile_rows<Registers, 4>()>(rows, K, A, a_row, a_col, B, init, init_row, init_vec,
                                                                 C, c_row, c_vec);
    }
}

// Rows of an operand are packed so far ahead of their use that their cache lines have come: rows are pages apart, which
// no prefetcher of the processor follows.
constexpr Index pack_ahead = 24;

// The first `depth` columns of the square as rows of `width`.
template <class S, class T = typename S::Scalar>
FASTRNN_INLINE void store_transposed(const T (&square)[S::lanes][S::lanes], int depth, T* to, Index width) {
    S rows[S::lanes];
    FASTRNN_UNROLL
    for (int i = 0; i < S::lanes; ++i) rows[i] = S::load(square[i]);
    S::transpose(rows);
    FASTRNN_UNROLL
    for (int d = 0; d < S::lanes; ++d)
        if (d < depth) rows[d].store(to + d * width);
}

// Both loops of pack work in squares of lanes x lanes, so that every cache line of B is used up while it is near.
template <class S, class T = typename S::Scalar>
void pack(int vectors, const Index* first, const int* valid, Index K, const T* B, Index k_stride, Index col_stride,
          T* panel) {
    constexpr int W = S::lanes;
    const Index width = static_cast<Index>(vectors) * W;
    if (col_stride == 1) {
        for (Index k = 0; k < K; ++k)
            for (int j = 0; j < vectors; ++j) {
                const T* from = B + k * k_stride + first[j];
                prefetch(from + pack_ahead * k_stride);
                load_part<S>(from, valid[j]).store(panel + k * width + j * W);
            }
        return;
    }
    for (int j = 0; j < vectors; ++j) {
        const T* from = B + first[j] * col_stride;
        for (Index k = 0; k < K; k += W) {
            const int depth = K - k < W ? static_cast<int>(K - k) : W;
            T square[W][W];  // [column][k]
            if (k_stride == 1) {
                for (int i = 0; i < valid[j]; ++i) {
                    prefetch(from + i * col_stride + k + 4 * W);
                    load_part<S>(from + i * col_stride + k, depth).store(square[i]);
                }
            } else {
                for (int i = 0; i < valid[j]; ++i)
                    for (int d = 0; d < depth; ++d) square[i][d] = from[i * col_stride + (k + d) * k_stride];
            }
            for (int i = valid[j]; i < W; ++i) S::zero().store(square[i]);
            store_transposed<S>(square, depth, panel + k * width + j * W, width);
        }
    }
}

template <class T, int Rows>
void pack_tile_of(Index K, const T* A, Index ld, T* out) {
    for (Index k = 0; k < K; ++k, A += ld, out += Rows)
        for (int i = 0; i < Rows; ++i) out[i] = A[i];
}
template <class T>
void pack_tile(int rows, Index K, const T* A, Index ld, T* out) {
    switch (rows) {
        case 3:
            return pack_tile_of<T, 3>(K, A, ld, out);
        case 4:
            return pack_tile_of<T, 4>(K, A, ld, out);
        case 6:
            return pack_tile_of<T, 6>(K, A, ld, out);
        case 8:
            return pack_tile_of<T, 8>(K, A, ld, out);
        case 12:
            return pack_tile_of<T, 12>(K, A, ld, out);
        default:
            for (Index k = 0; k < K; ++k, out += rows)
                for (int i = 0; i < rows; ++i) out[i] = A[k * ld + i];
    }
}

template <class S, class T = typename S::Scalar>
FASTRNN_INLINE void transpose_square(const T* A, Index a_row, T* out, Index out_row) {
    S rows[S::lanes];
    FASTRNN_UNROLL
    for (int i = 0; i < S::lanes; ++i) rows[i] = S::load(A + i * a_row);
    S::transpose(rows);
    FASTRNN_UNROLL
    for (int i = 0; i < S::lanes; ++i) rows[i].store(out + i * out_row);
}

template <class S, class T = typename S::Scalar>
void transpose(Index rows, Index columns, const T* A, Index a_row, T* out, Index out_row) {
    constexpr int W = S::lanes;
    for (Index i = 0; i < rows; i += W)
        for (Index j = 0; j < columns; j += W) {
            const T* from = A + i * a_row + j;
            T* to = out + j * out_row + i;
            const Index high = rows - i, wide = columns - j;
            if (high >= W && wide >= W) {
                transpose_square<S>(from, a_row, to, out_row);
                continue;
            }
            for (Index r = 0; r < high && r < W; ++r)
                for (Index q = 0; q < wide && q < W; ++q) to[q * out_row + r] = from[r * a_row + q];
        }
}

// Valid units of group j of a tile.
template <class S, class T>
FASTRNN_INLINE int valid(const Step<T>& s, int j) {
    return j + 1 == s.vectors ? s.last_valid : S::lanes;
}

// Gradients of gates: zeros in the lanes of units that do not exist. The product with Wh sums over those too; their
// weights are 0, but an infinite input makes NaN of 0 in their pre-activations, and NaN times 0 would be in every sum.
template <class S, class T>
FASTRNN_INLINE void store_gate(const Step<T>& s, int j, S x, T* p) {
    first_lanes(x, valid<S>(s, j)).store(p);
}

template <class S, class T = typename S::Scalar>
void lstm_forward(const Step<T>& s, const T* c_prev, T* c, Index ldc, T* gates, Index ld_gates) {
    constexpr int W = S::lanes;
    for (int r = 0; r < s.rows; ++r) {
        const T* a = s.a + r * s.lda;
        S h;
        const Lstm<S> x =
            lstm_cell(S::load(a), S::load(a + W), S::load(a + 2 * W), S::load(a + 3 * W), S::load(c_prev + r * ldc), h);
        T* g = gates + r * ld_gates;
        x.i.store(g);
        x.f.store(g + W);
        x.o.store(g + 2 * W);
        x.g.store(g + 3 * W);
        x.c.store(c + r * ldc);
        store_part(h, s.h_rows[r], s.last_valid);
        if (r < s.next_rows) store_part(h, s.h_next + r * s.ld_next, s.last_valid);
    }
}

template <class S, class T = typename S::Scalar>
void lstm_backward(const Step<T>& s, const T* const* dh_rows, const T* c_prev, const T* c, Index ldc, const T* gates,
                   Index ld_gates, T* dc, Index ld_dc, T* da) {
    constexpr int W = S::lanes;
    const S one = S::all(1);
    for (int r = 0; r < s.rows; ++r) {
        for (int j = 0; j < s.vectors; ++j) {
            const T* g = gates + r * ld_gates + 4 * j * W;
            const Lstm<S> x = {S::load(g), S::load(g + W), S::load(g + 2 * W), S::load(g + 3 * W),
                               S::load(c + r * ldc + j * W)};
            S dh = load_part<S>(dh_rows[r] + j * W, valid<S>(s, j));
            if (s.a) dh = dh + S::load(s.a + r * s.lda + j * W);
            T* dc_row = dc + r * ld_dc + j * W;
            const Lstm<S> d = lstm_cell_backward(x, S::load(c_prev + r * ldc + j * W), dh, S::load(dc_row), one);
            T* out = da + r * ld_gates + 4 * j * W;
            store_gate(s, j, d.i, out);
            store_gate(s, j, d.f, out + W);
            store_gate(s, j, d.o, out + 2 * W);
            store_gate(s, j, d.g, out + 3 * W);
            d.c.store(dc_row);
        }
    }
}

template <class S, class T = typename S::Scalar>
void gru_forward(const Step<T>& s, const T* pre, Index ld_pre, const T* h_prev, Index ld_prev, T* saved,
                 Index ld_saved) {
    constexpr int W = S::lanes;
    const S one = S::all(1);
    for (int r = 0; r < s.rows; ++r) {
        const T* a = s.a + r * s.lda;
        const T* p = pre + r * ld_pre;
        S h;
        const Gru<S> x = gru_cell(S::load(p), S::load(p + W), S::load(p + 2 * W), S::load(a), S::load(a + W),
                                  S::load(a + 2 * W), load_part<S>(h_prev + r * ld_prev, s.last_valid), one, h);
        T* out = saved + r * ld_saved;
        x.r.store(out);
        x.z.store(out + W);
        x.n.store(out + 2 * W);
        x.hn.store(out + 3 * W);
        store_part(h, s.h_rows[r], s.last_valid);
        if (r < s.next_rows) store_part(h, s.h_next + r * s.ld_next, s.last_valid);
    }
}

template <class S, class T = typename S::Scalar>
void gru_backward(const Step<T>& s, const T* const* dh_rows, const T* h_prev, Index ld_prev, const T* saved,
                  Index ld_saved, T* dh_kept, Index ld_dh, T* dax, T* dah, Index ld_da) {
    constexpr int W = S::lanes;
    const S one = S::all(1);
    for (int r = 0; r < s.rows; ++r) {
        for (int j = 0; j < s.vectors; ++j) {
            const T* g = saved + r * ld_saved + 4 * j * W;
            const Gru<S> x = {S::load(g), S::load(g + W), S::load(g + 2 * W), S::load(g + 3 * W)};
            T* kept = dh_kept + r * ld_dh + j * W;
            S dh = load_part<S>(dh_rows[r] + j * W, valid<S>(s, j)) + S::load(kept);
            if (s.a) dh = dh + S::load(s.a + r * s.lda + j * W);
            S dh_prev;
            const Gru<S> d =
                gru_cell_backward(x, load_part<S>(h_prev + r * ld_prev + j * W, valid<S>(s, j)), dh, one, dh_prev);
            T* ox = dax + r * ld_da + 3 * j * W;
            T* oh = dah + r * ld_da + 3 * j * W;
            store_gate(s, j, d.r, ox);
            store_gate(s, j, d.z, ox + W);
            store_gate(s, j, d.n, ox + 2 * W);
            store_gate(s, j, d.r, oh);
            store_gate(s, j, d.z, oh + W);
            store_gate(s, j, d.hn, oh + 2 * W);
            dh_prev.store(kept);
        }
    }
}

template <class S, class T = typename S::Scalar>
void rnn_forward(const Step<T>& s, T* y, Index ldy) {
    constexpr int W = S::lanes;
    for (int r = 0; r < s.rows; ++r) {
        for (int j = 0; j < s.vectors; ++j) {
            const S h = tanh(S::load(s.a + r * s.lda + j * W));
            store_part(h, s.h_rows[r] + j * W, valid<S>(s, j));
            store_part(h, (r < s.next_rows ? s.h_next + r * s.ld_next : y + r * ldy) + j * W, valid<S>(s, j));
        }
    }
}

template <class S, class T = typename S::Scalar>
void rnn_backward(const Step<T>& s, const T* const* dh_rows, const T* y, Index ldy, T* da, Index ld_da) {
    constexpr int W = S::lanes;
    const S one = S::all(1);
    for (int r = 0; r < s.rows; ++r) {
        for (int j = 0; j < s.vectors; ++j) {
            S dh = load_part<S>(dh_rows[r] + j * W, valid<S>(s, j));
            if (s.a) dh = dh + S::load(s.a + r * s.lda + j * W);
            store_gate(s, j, rnn_cell_backward(load_part<S>(y + r * ldy + j * W, valid<S>(s, j)), dh, one),
                       da + r * ld_da + j * W);
        }
    }
}

template <class S, int NV, class T = typename S::Scalar>
FASTRNN_INLINE void column_sums_of(Index K, const T* A, Index ld, T* sum) {
    constexpr int W = S::lanes;
    S total[NV];
    FASTRNN_UNROLL
    for (int j = 0; j < NV; ++j) total[j] = S::load(sum + j * W);
    for (Index k = 0; k < K;) {
        S slice[NV];
        FASTRNN_UNROLL
        for (int j = 0; j < NV; ++j) slice[j] = S::zero();
        for (const Index end = K - k < k_slice ? K : k + k_slice; k < end; ++k) {
            FASTRNN_UNROLL
            for (int j = 0; j < NV; ++j) slice[j] = slice[j] + S::load(A + k * ld + j * W);
        }
        FASTRNN_UNROLL
        for (int j = 0; j < NV; ++j) total[j] = total[j] + slice[j];
    }
    FASTRNN_UNROLL
    for (int j = 0; j < NV; ++j) total[j].store(sum + j * W);
}
template <class S, class T = typename S::Scalar>
void column_sums(int vectors, Index K, const T* A, Index ld, T* sum) {
    switch (vectors) {
        case 1:
            return column_sums_of<S, 1>(K, A, ld, sum);
        case 2:
            return column_sums_of<S, 2>(K, A, ld, sum);
        case 3:
            return column_sums_of<S, 3>(K, A, ld, sum);
        default:
            return column_sums_of<S, 4>(K, A, ld, sum);
    }
}

template <class S, class T = typename S::Scalar>
void add(Index n, const T* x, T* sum) {
    constexpr int W = S::lanes;
    Index i = 0;
    for (; i + W <= n; i += W) (S::load(sum + i) + S::load(x + i)).store(sum + i);
    for (; i < n; ++i) sum[i] += x[i];
}

// A sum of vectors in blocks of 32, which are then added up in double: its rounding error does not grow with its
// length.
template <class S>
class Blocked {
  public:
    FASTRNN_INLINE void add(S x) {
        block_ = block_ + x;
        if (++count_ % 32 == 0) close();
    }
    FASTRNN_INLINE double total() {
        close();
        return total_;
    }

  private:
    FASTRNN_INLINE void close() {
        for (int j = 0; j < S::lanes; ++j) total_ += block_.lane(j);
        block_ = S::zero();
    }
    S block_ = S::zero();
    double total_ = 0;
    Index count_ = 0;
};

template <class S, class T = typename S::Scalar>
FASTRNN_INLINE S maximum(S a, S b) {
    // A NaN in b is kept (b is the newer): the comparison is false and b is taken.
    return S::where_less(b, a, a, b);
}

template <class S, class T = typename S::Scalar>
double softmax_row(Index V, const T* x, Index stride, Index y, T scale, T* dx) {
    constexpr int W = S::lanes;
    const T* row = x;
    if (stride != 1) {
        for (Index i = 0; i < V; ++i) dx[i] = x[i * stride];
        row = dx;
    }
    S top = S::all(row[0]);
    Index i = 0;
    for (; i + W <= V; i += W) top = maximum(top, S::load(row + i));
    if (i < V) {
        T t[W];
        for (int j = 0; j < W; ++j) t[j] = row[i + j < V ? i + j : i];
        top = maximum(top, S::load(t));
    }
    T max = top.lane(0);
    for (int j = 1; j < W; ++j) max = top.lane(j) < max ? max : top.lane(j);
    const T chosen = row[y];
    const S shift = S::all(max);
    Blocked<S> sums;
    for (i = 0; i + W <= V; i += W) {
        const S e = exp_neg(S::load(row + i) - shift);
        e.store(dx + i);
        sums.add(e);
    }
    double sum = sums.total();
    if (i < V) {
        const int rest = static_cast<int>(V - i);
        const S e = exp_neg(load_part<S>(row + i, rest) - shift);
        store_part(e, dx + i, rest);
        for (int j = 0; j < rest; ++j) sum += e.lane(j);
    }
    const S factor = S::all(static_cast<T>(scale / sum));
    for (i = 0; i + W <= V; i += W) (S::load(dx + i) * factor).store(dx + i);
    for (; i < V; ++i) dx[i] *= static_cast<T>(scale / sum);
    dx[y] -= scale;
    return ::log(sum) - (static_cast<double>(chosen) - static_cast<double>(max));
}

// ---- softmax with one sample a lane: row v of s holds the scores of word v for vectors * lanes samples --------------

template <class S, class T = typename S::Scalar>
void pack_rows(int vectors, Index count, const T* const* rows, Index K, Index stride, T* panel) {
    constexpr int W = S::lanes;
    const Index width = static_cast<Index>(vectors) * W;
    for (Index k = 0; k < K; k += W) {
        const int depth = K - k < W ? static_cast<int>(K - k) : W;
        for (Index r = 0; r < width; r += W) {
            T square[W][W];  // [row][k]
            const int valid = count - r < W ? (count > r ? static_cast<int>(count - r) : 0) : W;
            for (int i = 0; i < valid; ++i) {
                const T* from = rows[r + i] + k * stride;
                if (stride == 1)
                    load_part<S>(from, depth).store(square[i]);
                else
                    for (int d = 0; d < depth; ++d) square[i][d] = from[d * stride];
            }
            for (int i = valid; i < W; ++i) S::zero().store(square[i]);
            store_transposed<S>(square, depth, panel + k * width + r, width);
        }
    }
}

template <class S, class T = typename S::Scalar>
void lanes_top(Index V, int vectors, T* s, const T* bias, Index bias_stride, T* top) {
    constexpr int W = S::lanes;
    const Index width = static_cast<Index>(vectors) * W;
    for (int j = 0; j < vectors; ++j) {
        S t = S::load(top + j * W);
        T* at = s + j * W;
        for (Index v = 0; v < V; ++v, at += width) {
            const S x = S::load(at) + S::all(bias[v * bias_stride]);
            x.store(at);
            t = maximum(t, x);
        }
        t.store(top + j * W);
    }
}

template <class S, class T = typename S::Scalar>
void lanes_exp(Index V, int vectors, T* s, const T* top, T* sum) {
    constexpr int W = S::lanes;
    const Index width = static_cast<Index>(vectors) * W;
    for (int j = 0; j < vectors; ++j) {
        const S shift = S::load(top + j * W);
        S total = S::zero();
        T* at = s + j * W;
        for (Index v = 0; v < V; ++v, at += width) {
            const S e = exp_neg(S::load(at) - shift);
            e.store(at);
            total = total + e;
        }
        total.store(sum + j * W);
    }
}

template <class S, class T = typename S::Scalar>
void lanes_scale(Index V, int vectors, T* s, const T* factor) {
    constexpr int W = S::lanes;
    const Index width = static_cast<Index>(vectors) * W;
    for (int j = 0; j < vectors; ++j) {
        const S f = S::load(factor + j * W);
        T* at = s + j * W;
        for (Index v = 0; v < V; ++v, at += width) (S::load(at) * f).store(at);
    }
}

template <class S, class T = typename S::Scalar>
void log_of(Index n, const T* x, T* y) {
    for (Index i = 0; i < n; i += S::lanes) {
        const int rest = n - i < S::lanes ? static_cast<int>(n - i) : S::lanes;
        store_part(log(load_part<S>(x + i, rest)), y + i, rest);
    }
}

template <class S, class T = typename S::Scalar>
double squared_distance(Index n, const T* a, const T* b) {
    constexpr int W = S::lanes;
    Blocked<S> sums;
    Index i = 0;
    for (; i + W <= n; i += W) {
        const S d = S::load(a + i) - S::load(b + i);
        sums.add(d * d);
    }
    double sum = sums.total();
    for (; i < n; ++i) sum += static_cast<double>(a[i] - b[i]) * static_cast<double>(a[i] - b[i]);
    return sum;
}

template <class S, class T = typename S::Scalar>
void scaled_difference(Index n, const T* a, const T* b, T scale, T* out) {
    constexpr int W = S::lanes;
    Index i = 0;
    for (; i + W <= n; i += W) (S::all(scale) * (S::load(a + i) - S::load(b + i))).store(out + i);
    for (; i < n; ++i) out[i] = scale * (a[i] - b[i]);
}

// Squared differences of a row's neighbours and, unless below is null, of the row and the next.
template <class S, class T = typename S::Scalar>
double tv_row(Index W, const T* row, const T* below) {
    double sum = squared_distance<S>(W - 1, row + 1, row);
    if (below) sum += squared_distance<S>(W, below, row);
    return sum;
}

template <class S, class T = typename S::Scalar>
void tv_row_backward(Index W, Index stride, const T* row, const T* above, const T* below, T scale, T* out) {
    const T two = 2 * scale;
    for (Index i = 0; i < W; ++i) {
        const Index at = i * stride;
        T d = 0;
        if (i > 0) d += row[at] - row[at - stride];
        if (i + 1 < W) d += row[at] - row[at + stride];
        if (above) d += row[at] - above[at];
        if (below) d += row[at] - below[at];
        out[i] = two * d;
    }
}

// Update rules. No array overlaps another, so the compiler may use vectors.
template <class T>
void sgd(Index n, const T* w, const T* dw, T lr, T* out) {
    FASTRNN_INDEPENDENT
    for (Index i = 0; i < n; ++i) out[i] = w[i] - lr * dw[i];
}

template <class T>
void sgd_momentum(Index n, const T* w, const T* dw, const T* v, T lr, T momentum, T* out, T* v_out) {
    FASTRNN_INDEPENDENT
    for (Index i = 0; i < n; ++i) {
        const T vi = momentum * v[i] - lr * dw[i];
        v_out[i] = vi;
        out[i] = w[i] + vi;
    }
}

template <class T>
FASTRNN_INLINE T root(T x) {
    if constexpr (sizeof(T) == 4)
        return ::sqrtf(x);
    else
        return ::sqrt(x);
}

template <class T>
void rmsprop(Index n, const T* w, const T* dw, const T* cache, T lr, T decay, T rest, T epsilon, T* out, T* cache_out) {
    FASTRNN_INDEPENDENT
    for (Index i = 0; i < n; ++i) {
        const T ci = decay * cache[i] + rest * (dw[i] * dw[i]);
        cache_out[i] = ci;
        out[i] = w[i] - lr * dw[i] / (root(ci) + epsilon);
    }
}

// settings: step size, beta1, 1 - beta1, beta2, 1 - beta2, epsilon, 1 / (1 - beta2^t)
template <class T>
void adam(Index n, const T* w, const T* dw, const T* m, const T* v, const T* settings, T* out, T* m_out, T* v_out) {
    const T step = settings[0], beta1 = settings[1], rest1 = settings[2], beta2 = settings[3], rest2 = settings[4];
    const T epsilon = settings[5], correction = settings[6];
    FASTRNN_INDEPENDENT
    for (Index i = 0; i < n; ++i) {
        const T mi = beta1 * m[i] + rest1 * dw[i];
        const T vi = beta2 * v[i] + rest2 * (dw[i] * dw[i]);
        m_out[i] = mi;
        v_out[i] = vi;
        out[i] = w[i] - step * mi / (root(vi * correction) + epsilon);
    }
}

// ---- sums of gathered rows ----

// Into the L2: measured on Zen 4, rows of 512 bytes come from memory at 23 GB/s with that, at 19 GB/s if they are
// fetched into the L1, whose misses in flight are fewer, and at 18 GB/s if they are not fetched ahead.
FASTRNN_INLINE void prefetch_l2(const void* p) {
#if defined(__GNUC__)
    __builtin_prefetch(p, 0, 2);
#else
    static_cast<void>(p);
#endif
}

template <class S, int NV, class T = typename S::Scalar>
FASTRNN_INLINE void prefetch_vectors(const T* p) {
    constexpr int line = 64 / sizeof(T), width = NV * S::lanes;
    FASTRNN_UNROLL
    for (int j = 0; j < width; j += line) prefetch_l2(p + j);
    prefetch_l2(p + width - 1);  // callers' arrays seldom begin on a cache line
}

// sum_rows for the columns of so many vectors.
template <class S, int NV, class T = typename S::Scalar>
FASTRNN_INLINE Index sum_vectors(const Gather<T>& g, Index column, const std::uint64_t* keys, Index most, Index known,
                                 const T* init, T* out) {
    const T* x = g.x + column;
    S sum[NV];
    FASTRNN_UNROLL
    for (int j = 0; j < NV; ++j) sum[j] = init ? S::load(init + j * S::lanes) : S::zero();
    Index i = 0;
    for (; i < most && (keys[i] | g.mask) == (keys[0] | g.mask); ++i) {
        if (i + g.fetch < known) {
            const std::uint64_t key = keys[i + g.fetch];
            prefetch_vectors<S, NV>(x + static_cast<Index>(key & g.mask) * g.x_row);
            if (g.into) prefetch_vectors<S, NV>(g.into + column + static_cast<Index>(key >> g.shift) * g.into_row);
        }
        const T* row = x + static_cast<Index>(keys[i] & g.mask) * g.x_row;
        FASTRNN_UNROLL
        for (int j = 0; j < NV; ++j) sum[j] = sum[j] + S::load(row + j * S::lanes);
    }
    if (g.stream && reinterpret_cast<std::uintptr_t>(out) % 64 == 0) {
        FASTRNN_UNROLL
        for (int j = 0; j < NV; ++j) sum[j].stream(out + j * S::lanes);
    } else {
        FASTRNN_UNROLL
        for (int j = 0; j < NV; ++j) sum[j].store(out + j * S::lanes);
    }
    return i;
}

template <class S, int Registers, class T = typename S::Scalar>
Index sum_rows(const Gather<T>& g, Index n, const std::uint64_t* keys, Index most, Index known, const T* init, T* out) {
    constexpr int W = S::lanes;
    constexpr int NV = Registers / 2;
    Index i = 0, count = most;
    for (; i + NV * W <= n; i += NV * W)
        count = sum_vectors<S, NV>(g, i, keys, count, known, init ? init + i : nullptr, out + i);
    for (; i + NV / 2 * W <= n; i += NV / 2 * W)
        count = sum_vectors<S, NV / 2>(g, i, keys, count, known, init ? init + i : nullptr, out + i);
    for (; i + W <= n; i += W) count = sum_vectors<S, 1>(g, i, keys, count, known, init ? init + i : nullptr, out + i);
    if (i < n) {
        const int rest = static_cast<int>(n - i);
        S sum = init ? load_part<S>(init + i, rest) : S::zero();
        Index k = 0;
        for (; k < count && (keys[k] | g.mask) == (keys[0] | g.mask); ++k)
            sum = sum + load_part<S>(g.x + i + static_cast<Index>(keys[k] & g.mask) * g.x_row, rest);
        count = k;
        store_part(sum, out + i, rest);
    }
    return count;
}

template <class S, class T = typename S::Scalar>
void evaluate(int which, Index n, const T* x, T* y) {
    constexpr int W = S::lanes;
    for (Index i = 0; i < n; i += W) {
        const int rest = n - i < W ? static_cast<int>(n - i) : W;
        const S v = load_part<S>(x + i, rest);
        store_part(which == 0 ? sigmoid(v) : which == 1 ? tanh(v) : which == 2 ? exp_neg(v) : log(v), y + i, rest);
    }
}

template <class S, int Registers>
double peak(Index rounds) {
    constexpr int chains = Registers >= 32 ? 24 : 12;
    const S x = S::all(typename S::Scalar(0.999)), y = S::all(typename S::Scalar(0.001));
    S acc[chains];
    FASTRNN_UNROLL
    for (int i = 0; i < chains; ++i) acc[i] = S::all(typename S::Scalar(i));
    for (Index k = 0; k < rounds; ++k) {
        FASTRNN_UNROLL
        for (int i = 0; i < chains; ++i) acc[i] = acc[i] * x + y;
    }
    S sum = acc[0];
    for (int i = 1; i < chains; ++i) sum = sum + acc[i];
    // The result is used, so that the loop cannot be dropped; it is far from the value compared with.
    const double operations = 2.0 * chains * S::lanes * static_cast<double>(rounds);
    return sum.lane(0) == typename S::Scalar(-1) ? 0.0 : operations;
}

template <class S, int Registers>
constexpr Table<typename S::Scalar> make_table() {
    using T = typename S::Scalar;
    return {
        S::lanes,
        {0, tile_rows<Registers, 1>(), tile_rows<Registers, 2>(), tile_rows<Registers, 3>(), tile_rows<Registers, 4>()},
        1,
        1,
        any_tile<S, Registers>,
        any_stream<S>,
        pack<S>,
        pack_tile<T>,
        transpose<S>,
        lstm_forward<S>,
        lstm_backward<S>,
        gru_forward<S>,
        gru_backward<S>,
        rnn_forward<S>,
        rnn_backward<S>,
        column_sums<S>,
        add<S>,
        softmax_row<S>,
        pack_rows<S>,
        lanes_top<S>,
        lanes_exp<S>,
        lanes_scale<S>,
        log_of<S>,
        squared_distance<S>,
        scaled_difference<S>,
        tv_row<S>,
        tv_row_backward<S>,
        sgd<T>,
        sgd_momentum<T>,
        rmsprop<T>,
        adam<T>,
        sum_rows<S, Registers>,
        evaluate<S>,
        peak<S, Registers>};
}

}  // namespace
}  // namespace fastrnn::cpu
