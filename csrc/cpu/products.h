// Products whose right operand is packed anew by each call: affine layers and the gradient of the Gram matrices.
//
// A worker's part of the result is a stretch of it, panel after panel and within a panel tile after tile, so that parts
// come out even to a tile whatever the sizes. It packs the panels of its part for itself, a block of k at a time, into
// its own stack: two workers pack the same panel only where a part ends inside it, nobody waits for anybody, and what
// is packed stays in the caches of the core that uses it.
//
// Before, all workers packed the whole operand, met, and shared out pieces of 96 rows of a panel. On two cores,
// float32, (rows, K, columns), forward: (200,1600,800) 179 GFLOP/s, now 190; (100,200,800) 131, now 170; (800,256,40)
// 104, now 139; (400,512,1004) 188, now 200; (2048,512,2048) 206, now 213. The workers waking while arguments are
// checked is 20 to 25 us of that. Blocks of k of 256 instead of long_block: (2048,512,2048) 188, (400,512,1004) 188;
// 512: 212 and 194.
#pragma once

#include "gemm.h"

namespace fastrnn::cpu {

// As pack_panel for columns that follow each other; where k runs along memory, in squares that are transposed in
// registers.
template <class T>
void pack_plain(const Columns& c, Index K, const T* B, Index k_stride, Index col_stride, T* panel) {
    if (k_stride != 1 || col_stride == 1) return pack_panel(table<T>(), c, K, B, k_stride, col_stride, panel);
    const Table<T>& t = table<T>();
    const Index width = Index(c.vectors) * t.lanes, valid = width - t.lanes + c.valid[c.vectors - 1];
    if (valid < width)
        for (Index k = 0; k < K; ++k) std::fill(panel + k * width + valid, panel + (k + 1) * width, T(0));
    t.transpose(valid, K, B + c.first[0] * col_stride, col_stride, panel, width);
}

// A worker's part of `images` results of so many rows and vectors of columns. Calls f(image, first vector, vectors,
// height of tiles, first row, end).
template <class F>
void for_part(const Worker& w, Index images, Index rows, Index vectors, const int* max_rows, F&& f) {
    const Index each = rows * vectors, total = images * each;
    const Index begin = total * w.index / w.count, end = total * (w.index + 1) / w.count;
    if (begin == end) return;
    for (Index image = begin / each; image * each < end; ++image)
        for (Index v = 0; v < vectors; v += max_vectors) {
            const Index size = std::min<Index>(max_vectors, vectors - v), start = image * each + v * rows;
            if (start + size * rows <= begin || start >= end) continue;
            const int height = tile_height(rows, max_rows[size]);
            const auto row_of = [&](Index x) {
                const Index row = std::clamp<Index>((x - start) / size, 0, rows);
                return row == rows ? rows : row / height * height;
            };
            const Index first = row_of(begin), last = row_of(end);
            if (first < last) f(image, v, static_cast<int>(size), height, first, last);
        }
}

// Where a product goes: element (i, j) of image n to data[n * image + i * row + j * col].
template <class T>
struct Result {
    T* data;
    Index image, row, col;
};

// Elements of `spill` that multiply_part needs.
template <class T>
Index spill_size(Index images, Index rows, Index columns, bool contiguous) {
    const Index width = max_vectors * table<T>().lanes;
    return contiguous ? images * rows * width : images * rows * ceil_div(columns, width) * width;
}

// This worker's part of C (rows, columns) = bias + A (rows, K) B (K, columns), for each image. bias: padded to whole
// vectors, or null. What does not fill whole vectors, or is not contiguous in C, waits in spill until it is complete.
// summed(c, k, depth, packed panel, whether first) is called with each block that holds row 0 of the result.
template <class T, class F>
void multiply_part(const Worker& w, Index images, Index rows, Index columns, Index K, const Cube<T>& A,
                   const Cube<T>& B, const T* bias, T* spill, const Result<T>& C, F&& summed) {
    const Table<T>& t = table<T>();
    const Index vectors = ceil_div(columns, t.lanes), most = max_vectors * t.lanes;
    const Index per_image = C.col == 1 ? 1 : ceil_div(vectors, max_vectors);
    // With A's rows contiguous, long blocks; read across its rows, each k is another page.
    const Index block_rows = A.s2 == 1 ? long_block : k_block;
    T block[long_block * max_vectors * max_lanes<T>];
    for_part(
        w, images, rows, vectors, t.max_rows, [&](Index n, Index v, int size, int height, Index from, Index until) {
            const Columns c = plain_columns(columns, t.lanes, v, vectors);
            const Index width = Index(size) * t.lanes, first = c.first[0], valid = std::min(width, columns - first);
            const bool whole = C.col == 1 && valid == width;
            T* to = C.data + n * C.image + first * C.col;
            T* out = whole ? to : spill + (n * per_image + (C.col == 1 ? 0 : v / max_vectors)) * rows * most;
            const Index out_row = whole ? C.row : width;
            Index k = 0;
            do {
                const Index depth = std::min(block_rows, K - k);
                pack_plain(c, depth, B.data + n * B.s0 + k * B.s1, B.s1, B.s2, block);
                if (from == 0) summed(c, k, depth, block);
                for (Index i = from; i < until; i += height) {
                    T* tile = out + i * out_row;
                    t.tile(static_cast<int>(std::min<Index>(height, until - i)), size, depth,
                           A.data + n * A.s0 + i * A.s1 + k * A.s2, A.s1, A.s2, block,
                           k      ? tile
                           : bias ? bias + first
                                  : nullptr,
                           k ? out_row : 0, t.lanes, tile, out_row, t.lanes);
                }
                k += depth;
            } while (k < K);
            if (whole) return;
            // Along the shorter stride innermost.
            if (C.row < C.col) {
                for (Index j = 0; j < valid; ++j)
                    for (Index i = from; i < until; ++i) to[i * C.row + j * C.col] = out[i * width + j];
            } else {
                for (Index i = from; i < until; ++i)
                    for (Index j = 0; j < valid; ++j) to[i * C.row + j * C.col] = out[i * width + j];
            }
        });
}

}  // namespace fastrnn::cpu
