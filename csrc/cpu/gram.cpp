// Gram matrices: f f^T for each image, and their gradient (dg + dg^T) f.
//
// Forward: the positions of an image are cut into stretches. A stretch of all channels is packed, a block of k at a
// time, into narrow panels of channels, and these are at once the right operand and, read across, the left one:
// rows of f are often a power of two apart, and would evict each other. Only rows from a panel's first channel on are
// computed; the rest is mirrored, so that the matrix is exactly symmetric. The stretches' products are added up in
// order, so that the result does not depend on who computed which. Where there are few stretches, several workers share
// one and cut its rows, so that their parts of the triangle are nearly equal; each then packs what it needs itself.
// Backward: a product of the symmetric dg + dg^T, as in products.h.
//
// What bounded (1,512,13,13), microseconds on one thread beside products of 450 and 800: the columns of dg^T read one
// by one (561) and those of the mirror written so (246), a power of two apart; and of three panels of positions one
// thread had two. Rejected: wider panels (below), panels of 64 with the left rows read in place (forward of
// (1,64,512,512) then took 15.3 instead of 11 ms), and blocks of k of 256 or 512 in backward (565 and 599 us on this
// shape, 538 with long_block).
#include "products.h"

namespace fastrnn::cpu {

namespace {

// Channels of a panel of the forward product, if they are no more than max_vectors vectors. Wider ones compute more
// that lies above the diagonal, which is thrown away, narrower ones load more. With 16, 32 and 64 on AVX-512, forward
// took 307, 343 and 357 us on (1,512,13,13), 380, 489 and 583 us on (1,64,111,111), 10.4, 10.8 and 11.2 ms on
// (8,512,28,28); with 8 and 16 on AVX2, 381 and 313 us on the first.
constexpr int panel_channels = 16;
// The most workers that forward has scratch for.
constexpr Index most_workers = 32;

// How a forward product is cut; it depends on the sizes alone.
struct Cut {
    Index C, P;
    int lanes, vectors;  // of a panel
    Index width, panels;
    Index stretch, stretches;  // positions of a stretch, and how many there are
    Index depth;               // positions packed at a time
    Index workers;

    Cut(Index N, Index c, Index p, int l)
        : C(c), P(p), lanes(l), vectors(std::clamp(panel_channels / l, 1, max_vectors)) {
        width = Index(vectors) * l;
        panels = ceil_div(C, width);
        // Long stretches have fewer products to be added up, short ones are shared out evenly.
        stretch = k_block * std::clamp<Index>(P / (32 * k_block), 1, 4);
        stretches = std::max<Index>(1, ceil_div(P, stretch));
        // What is packed stays in the L2.
        constexpr Index most = k_block * 512;
        depth = std::clamp<Index>(most / std::max<Index>(panels * width, 1) / 64 * 64, 64, k_block);
        depth = std::min(depth, std::max<Index>(P, 1));
        workers = std::clamp<Index>(static_cast<Index>(1.0 * N * C * C * P / 4e6), 1, most_workers);
    }
    Columns columns(Index panel) const {
        const Index end = ceil_div(C, lanes);
        return plain_columns(C, lanes, panel * vectors, std::min(end, (panel + 1) * vectors));
    }
    // Where a panel's packed block begins, and its product (C - first row, its width), of which one stretch has C *
    // width each.
    Index packed(Index panel) const { return panel * width * depth; }
    Index product(Index panel) const { return panel * width * C; }
    // First panel of rows of part `part` of `parts` of the triangle.
    Index first_of(Index part, Index parts) const {
        Index r = 0;
        while (r < panels && r * (r + 1) * parts < panels * (panels + 1) * part) ++r;
        return r;
    }
};

template <class T>
struct ForwardScratch {
    T *packed, *products;
    Index block, product;  // elements for each worker; for each stretch of each image
    Index used;
    ForwardScratch(Index N, const Cut& cut, T* memory)
        : block(cut.panels * cut.width * cut.depth), product(cut.panels * cut.width * cut.C) {
        Carver<T> carve(memory);
        packed = carve.take(cut.workers * block);
        products = carve.take(N * cut.stretches * product);
        used = carve.used();
    }
};

// Products of a stretch of one image for the panels of rows first .. last.
template <class T>
void multiply_stretch(const Cut& cut, const T* image, Index p_stride, Index c_stride, Index from, Index until,
                      Index first, Index last, T* packed, T* products) {
    const Table<T>& t = table<T>();
    Index k = from;
    do {
        const Index depth = std::min(cut.depth, until - k);
        for (Index q = 0; q < last; ++q)
            pack_plain(cut.columns(q), depth, image + k * p_stride, p_stride, c_stride, packed + cut.packed(q));
        for (Index p = 0; p < last; ++p) {
            const Columns c = cut.columns(p);
            const Index width = Index(c.vectors) * t.lanes;
            for (Index q = std::max(first, p); q < last; ++q) {
                const Index left = Index(cut.columns(q).vectors) * t.lanes;
                const Index rows = std::min(cut.width, cut.C - q * cut.width);
                const int height = tile_height(rows, t.max_rows[c.vectors]);
                T* product = products + cut.product(p) + (q - p) * cut.width * width;
                for (Index i = 0; i < rows; i += height, product += height * width)
                    t.tile(static_cast<int>(std::min<Index>(height, rows - i)), c.vectors, depth,
                           packed + cut.packed(q) + i, 1, left, packed + cut.packed(p), k > from ? product : nullptr,
                           width, t.lanes, product, width, t.lanes);
            }
        }
        k += depth;
    } while (k < until);
}

// Writes the rows of one panel's channels, and what mirrors them, from the products of all stretches.
template <class T>
void write_rows(const Cut& cut, Index row_panel, Index product, T scale, const T* products, T* g) {
    const Table<T>& t = table<T>();
    const Index row = row_panel * cut.width, rows = std::min(cut.width, cut.C - row);
    T square[panel_channels * panel_channels];
    for (Index p = 0; p <= row_panel; ++p) {
        const Index width = Index(cut.columns(p).vectors) * t.lanes, first = p * cut.width, count = rows * width;
        const T* from = products + cut.product(p) + (row - first) * width;
        std::copy_n(from, count, square);
        for (Index s = 1; s < cut.stretches; ++s) t.add(count, from + s * product, square);
        for (Index i = 0; i < count; ++i) square[i] *= scale;
        if (p < row_panel) {
            for (Index i = 0; i < rows; ++i) std::copy_n(square + i * width, width, g + (row + i) * cut.C + first);
            t.transpose(rows, width, square, width, g + first * cut.C + row, cut.C);
        } else {
            for (Index i = 0; i < rows; ++i)
                for (Index j = 0; j <= i; ++j)
                    g[(row + i) * cut.C + first + j] = g[(first + j) * cut.C + row + i] = square[i * width + j];
        }
    }
}

// sums (C, C) = scale (dg + dg^T), rows first .. last of one image.
template <class T>
void symmetric_sum(Index C, const T* dg, Index row, Index col, T scale, Index first, Index last, T* sums) {
    const Table<T>& t = table<T>();
    if (col != 1) {
        for (Index i = first; i < last; ++i)
            for (Index j = 0; j < C; ++j) sums[i * C + j] = scale * (dg[i * row + j * col] + dg[j * row + i * col]);
        return;
    }
    constexpr Index wide = 64;
    T mirrored[16 * wide];
    for (Index i = first; i < last; i += 16)
        for (Index j = 0; j < C; j += wide) {
            const Index rows = std::min<Index>(16, last - i), columns = std::min(wide, C - j);
            t.transpose(columns, rows, dg + j * row + i, row, mirrored, wide);
            for (Index r = 0; r < rows; ++r) {
                const T *a = dg + (i + r) * row + j, *b = mirrored + r * wide;
                T* out = sums + (i + r) * C + j;
                for (Index q = 0; q < columns; ++q) out[q] = scale * (a[q] + b[q]);
            }
        }
}

}  // namespace

template <class T>
BufferSizes gram_buffers(Index N, Index C, Index P) {
    const Cut cut(N, C, P, table<T>().lanes);
    return {0, ForwardScratch<T>(N, cut, nullptr).used, N * C * C + spill_size<T>(N, C, P, false)};
}

template <class T>
void gram_matrix(Index N, Index C, Index P, Cube<T> f, double scale, T* workspace, T* g) {
    const Cut cut(N, C, P, table<T>().lanes);
    const ForwardScratch<T> scratch(N, cut, workspace);
    const Index stretches = N * cut.stretches;
    run(threads_for(1.0 * N * C * C * P, std::min(cut.workers, stretches * cut.panels)), [&](const Worker& w) {
        const bool even = stretches % w.count == 0 || stretches >= 8 * w.count;
        const Index parts = even ? 1 : std::min<Index>(w.count, cut.panels);
        const Range mine = share(stretches * parts, w);
        for (Index task = mine.begin; task < mine.end; ++task) {
            const Index part = task % parts, n = task / parts / cut.stretches, s = task / parts % cut.stretches;
            const Index from = s * cut.stretch, until = std::min(P, from + cut.stretch);
            const Index first = cut.first_of(part, parts), last = cut.first_of(part + 1, parts);
            T* products = scratch.products + (n * cut.stretches + s) * scratch.product;
            multiply_stretch(cut, f.data + n * f.s0, f.s2, f.s1, from, until, first, last,
                             scratch.packed + w.index * scratch.block, products);
            if (cut.stretches > 1) continue;
            for (Index r = first; r < last; ++r)
                write_rows(cut, r, scratch.product, static_cast<T>(scale), products, g + n * C * C);
        }
        if (cut.stretches == 1) return;
        w.barrier();
        // Long rows and short ones in turn.
        for (Index r = w.index; r < N * cut.panels; r += w.count) {
            const Index n = r / cut.panels;
            write_rows(cut, r % cut.panels, scratch.product, static_cast<T>(scale),
                       scratch.products + n * cut.stretches * scratch.product, g + n * C * C);
        }
    });
}

template <class T>
void gram_backward(Index N, Index C, Index P, Cube<T> dg, Cube<T> f, double scale, T* workspace, T* df, Index df_s0,
                   Index df_s1, Index df_s2) {
    T *sums = workspace, *spill = workspace + N * C * C;
    run(threads_for(2.0 * N * C * C * P, N * C * ceil_div(P, table<T>().lanes)), [&](const Worker& w) {
        // Whole blocks of 16 rows.
        const Index blocks = ceil_div(C, 16);
        const Range mine = share(N * blocks, w);
        for (Index b = mine.begin; b < mine.end; ++b) {
            const Index n = b / blocks, first = b % blocks * 16;
            symmetric_sum(C, dg.data + n * dg.s0, dg.s1, dg.s2, static_cast<T>(scale), first, std::min(C, first + 16),
                          sums + n * C * C);
        }
        w.barrier();
        multiply_part(w, N, C, P, C, Cube<T>{sums, C * C, C, 1}, f, static_cast<const T*>(nullptr), spill,
                      Result<T>{df, df_s0, df_s1, df_s2}, [](const Columns&, Index, Index, const T*) {});
    });
}

template BufferSizes gram_buffers<float>(Index, Index, Index);
template void gram_matrix<float>(Index, Index, Index, Cube<float>, double, float*, float*);
template void gram_backward<float>(Index, Index, Index, Cube<float>, Cube<float>, double, float*, float*, Index, Index,
                                   Index);
template BufferSizes gram_buffers<double>(Index, Index, Index);
template void gram_matrix<double>(Index, Index, Index, Cube<double>, double, double*, double*);
template void gram_backward<double>(Index, Index, Index, Cube<double>, Cube<double>, double, double*, double*, Index,
                                    Index, Index);

}  // namespace fastrnn::cpu
