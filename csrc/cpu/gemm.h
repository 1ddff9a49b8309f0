// Products of matrices in panels: what the recurrent engine and the Gram matrices stand on.
//
// The right operand is packed into panels of up to four vectors of columns, [k][vectors * lanes], zeros where a vector
// has fewer columns than lanes. A panel belongs to one thread, which computes those columns for all rows: threads never
// share an element of the result, and its sum runs over k in the same order and the same blocks at any number of
// threads. The left operand is read in place, with any strides.
//
// Why not the BLAS that SciPy ships, measured on two cores of an EPYC (Zen 4, 2 x 112 GFLOP/s): CONTRIBUTING.md,
// "Where the code departs from the first design".
#pragma once

#include <algorithm>

#include "isa.h"
#include "team.h"

namespace fastrnn::cpu {

// k is cut into blocks of this many: 256 rows of a panel of 64 floats are 64 KiB, which stays in the L2 beside the rows
// of the left operand, and the result is read and written again once per block.
constexpr Index k_block = 256;
// The same for products over all rows of all steps, whose results do not fit the caches: longer blocks, because each
// reads and writes the result once more.
constexpr Index long_block = 1024;
// Rows of results gathered before they are handed on, where they do not go to memory in place.
constexpr Index row_chunk = 192;
// The most elements that one tile has: rows x vectors x lanes, over all instruction sets.
constexpr int max_tile = 32 * 4 * 16;
constexpr int max_tile_rows = 32;
// Rows of a tile register, where the instruction set has those.
constexpr int register_rows = 16;

// Hands out pieces of a caller-owned buffer, each on a cache line. With a null base it only counts.
template <class T>
class Carver {
  public:
    explicit Carver(const T* base) : base_(const_cast<T*>(base)) {}
    T* take(Index n) {
        T* piece = base_ ? base_ + used_ : nullptr;
        used_ += round_up(n);
        return piece;
    }
    Index* take_indices(Index n) {
        return reinterpret_cast<Index*>(take(n * static_cast<Index>(sizeof(Index) / sizeof(T))));
    }
    Index used() const { return used_; }

  private:
    static Index round_up(Index n) {
        constexpr Index line = 64 / sizeof(T);
        return (n + line - 1) / line * line;
    }
    T* base_;
    Index used_ = 0;
};

inline Index ceil_div(Index a, Index b) {
    return (a + b - 1) / b;
}

// Length of a row so that successive rows do not fall into the same cache sets, as they do at powers of two.
template <class T>
Index padded_row(Index n) {
    constexpr Index line = 64 / sizeof(T);
    const Index rounded = ceil_div(n, line) * line;
    return rounded % (8 * line) == 0 ? rounded + line : rounded;
}

// The columns of one panel: vector j holds columns first[j] .. first[j] + valid[j].
struct Columns {
    int vectors;
    Index first[max_vectors];
    int valid[max_vectors];
};

// Columns of panel p when `columns` plain columns, from vector `begin` to `end`, are cut into panels of four vectors.
inline Columns plain_columns(Index columns, int lanes, Index vector, Index end) {
    Columns c{};
    c.vectors = static_cast<int>(std::min<Index>(max_vectors, end - vector));
    for (int j = 0; j < c.vectors; ++j) {
        c.first[j] = (vector + j) * lanes;
        c.valid[j] = static_cast<int>(std::min<Index>(lanes, columns - c.first[j]));
    }
    return c;
}

// Table::pack of the columns c.
template <class T>
void pack_panel(const Table<T>& t, const Columns& c, Index K, const T* B, Index k_stride, Index col_stride, T* panel) {
    t.pack(c.vectors, c.first, c.valid, K, B, k_stride, col_stride, panel);
}

// Rows of one tile when `rows` are cut into tiles of nearly one size, none above `most`; whole tile registers of rows,
// where tiles consist of them.
inline int tile_height(Index rows, int most) {
    const Index height = ceil_div(rows, ceil_div(rows, most));
    if (most % register_rows) return static_cast<int>(height);
    return static_cast<int>(std::min(rows, ceil_div(height, Index(register_rows)) * register_rows));
}

// C (M, panel) = init + A (M, K) B (K, panel), k in blocks. init as in Table::tile, used for the first block only.
template <class T>
void multiply_panel(const Table<T>& t, Index M, int vectors, Index K, const T* A, Index a_row, Index a_col,
                    const T* panel, const T* init, Index init_row, T* C, Index c_row, Index c_vec) {
    if (M <= 0) return;
    const int height = tile_height(M, t.max_rows[vectors]);
    Index k = 0;
    do {
        const Index depth = std::min(k_block, K - k);
        for (Index i = 0; i < M; i += height) {
            const int rows = static_cast<int>(std::min<Index>(height, M - i));
            T* c = C + i * c_row;
            const T* from = k ? c : init ? init + i * init_row : nullptr;
            t.tile(rows, vectors, depth, A + i * a_row + k * a_col, a_row, a_col,
                   panel + packed(t, k, vectors * t.lanes), from, k ? c_row : init_row, k ? c_vec : t.lanes, c, c_row,
                   c_vec);
        }
        k += depth;
    } while (k < K);
}

}  // namespace fastrnn::cpu
