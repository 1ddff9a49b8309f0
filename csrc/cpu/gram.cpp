// Gram matrices: f f^T for each image, and their gradient (dg + dg^T) f.
//
// Forward: a task is one panel of channels of one image over one stretch of positions; the stretches' partial products
// are added up in order, so that the result does not depend on who computed which. Tasks are taken from a counter, the
// large ones first, because panels near the end of the triangle are short. Only rows from a panel's first column on are
// computed; the rest is mirrored, so that the matrix is exactly symmetric.
// Backward: panels are positions, k runs over channels.
#include <atomic>

#include "gemm.h"

namespace fastrnn::cpu {

namespace {

constexpr Index positions = 4 * k_block;  // of one task

struct Tasks {
    Index panels, stretches, width;
    Tasks(Index C, Index P, int lanes)
        : panels(ceil_div(C, max_vectors * lanes)),
          stretches(std::max<Index>(1, ceil_div(P, positions))),
          width(max_vectors * lanes) {}
};

template <class T>
struct ForwardScratch {
    T *blocks, *products;  // a block of k for each image, panel and stretch, and its product (C, width)
    Index used;
    ForwardScratch(Index N, Index C, const Tasks& tasks, T* memory) {
        Carver<T> carve(memory);
        const Index count = N * tasks.panels * tasks.stretches;
        blocks = carve.take(count * k_block * tasks.width);
        products = carve.take(count * C * tasks.width);
        used = carve.used();
    }
};

}  // namespace

template <class T>
BufferSizes gram_buffers(Index N, Index C, Index P) {
    const int lanes = table<T>().lanes;
    const Index width = max_vectors * lanes;
    // Backward: dg + dg^T, and for each panel of positions the panel and its result.
    return {0, ForwardScratch<T>(N, C, Tasks(C, P, lanes), nullptr).used,
            N * C * C + N * ceil_div(P, width) * width * (C + C)};
}

template <class T>
void gram_matrix(Index N, Index C, Index P, Cube<T> f, double scale, T* workspace, T* g) {
    const Table<T>& t = table<T>();
    const Tasks tasks(C, P, t.lanes);
    const ForwardScratch<T> scratch(N, C, tasks, workspace);
    const Index each = N * tasks.stretches, count = tasks.panels * each;
    std::atomic<Index> next{0};
    run(threads_for(1.0 * N * C * C * P, count), [&](const Worker& w) {
        for (Index task; (task = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
            const Index first = task / each * tasks.width, rows = C - first;
            const Index n = task % each / tasks.stretches, from = task % tasks.stretches * positions;
            const Index until = std::min(P, from + positions);
            const Columns c = plain_columns(C, t.lanes, first / t.lanes, ceil_div(C, t.lanes));
            const Index width = Index(c.vectors) * t.lanes;
            T* block = scratch.blocks + task * k_block * tasks.width;
            T* product = scratch.products + task * C * tasks.width;
            const T* image = f.data + n * f.s0;
            const int height = tile_height(std::max<Index>(rows, 1), t.max_rows[c.vectors]);
            Index k = from;
            do {
                const Index depth = std::min(k_block, until - k);
                pack_panel(t, c, depth, image + k * f.s2, f.s2, f.s1, block);
                for (Index i = 0; i < rows; i += height)
                    t.tile(static_cast<int>(std::min<Index>(height, rows - i)), c.vectors, depth,
                           image + (first + i) * f.s1 + k * f.s2, f.s1, f.s2, block,
                           k > from ? product + i * width : nullptr, width, t.lanes, product + i * width, width,
                           t.lanes);
                k += depth;
            } while (k < until);
        }
        w.barrier();

        const Range mine = share(N * tasks.panels, w);
        for (Index p = mine.begin; p < mine.end; ++p) {
            const Index n = p % N, first = p / N * tasks.width, rows = C - first;
            const Index width =
                Index(plain_columns(C, t.lanes, first / t.lanes, ceil_div(C, t.lanes)).vectors) * t.lanes;
            T* sum = scratch.products + (p / N * each + n * tasks.stretches) * C * tasks.width;
            for (Index s = 1; s < tasks.stretches; ++s) t.add(rows * width, sum + s * C * tasks.width, sum);
            T* out = g + n * C * C;
            for (Index i = 0; i < rows; ++i) {
                const Index row = first + i;
                for (Index j = 0; j < width && first + j <= row; ++j) {
                    const T value = static_cast<T>(scale) * sum[i * width + j];
                    out[row * C + first + j] = value;
                    out[(first + j) * C + row] = value;
                }
            }
        }
    });
}

template <class T>
void gram_backward(Index N, Index C, Index P, Cube<T> dg, Cube<T> f, double scale, T* workspace, T* df, Index df_s0,
                   Index df_s1, Index df_s2) {
    const Table<T>& t = table<T>();
    const Index most = max_vectors * t.lanes, per_image = ceil_div(P, most), count = N * per_image;
    T* sums = workspace;
    run(threads_for(2.0 * N * C * C * P, count), [&](const Worker& w) {
        const Range rows = share(N * C, w);
        for (Index r = rows.begin; r < rows.end; ++r) {
            const Index n = r / C, i = r % C;
            for (Index j = 0; j < C; ++j)
                sums[r * C + j] = static_cast<T>(scale) * (dg.at(n, i)[j * dg.s2] + dg.at(n, j)[i * dg.s2]);
        }
        w.barrier();
        const Range mine = share(count, w);
        for (Index p = mine.begin; p < mine.end; ++p) {
            const Index n = p / per_image, first = p % per_image * most;
            const Columns c = plain_columns(P, t.lanes, first / t.lanes, ceil_div(P, t.lanes));
            const Index width = Index(c.vectors) * t.lanes, columns = std::min(width, P - first);
            T *panel = workspace + N * C * C + p * most * (C + C), *product = panel + most * C;
            T* out = df + n * df_s0 + first * df_s2;
            pack_panel(t, c, C, f.data + n * f.s0, f.s1, f.s2, panel);
            const bool in_place = df_s2 == 1 && columns == width;
            multiply_panel(t, C, c.vectors, C, sums + n * C * C, C, Index(1), panel, static_cast<const T*>(nullptr),
                           Index(0), in_place ? out : product, in_place ? df_s1 : width, Index(t.lanes));
            if (in_place) continue;
            // Along the shorter stride innermost.
            if (df_s1 < df_s2) {
                for (Index j = 0; j < columns; ++j)
                    for (Index i = 0; i < C; ++i) out[i * df_s1 + j * df_s2] = product[i * width + j];
            } else {
                for (Index i = 0; i < C; ++i)
                    for (Index j = 0; j < columns; ++j) out[i * df_s1 + j * df_s2] = product[i * width + j];
            }
        }
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
