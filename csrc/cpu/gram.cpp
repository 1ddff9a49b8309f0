// Gram matrices: f f^T for each image, and their gradient (dg + dg^T) f.
//
// Panels are columns of f^T (channels), k runs over positions. One half of each Gram matrix is computed and then
// mirrored, so that it is exactly symmetric.
#include "gemm.h"

namespace fastrnn::cpu {

namespace {

// Threads share out the panels of all images. Each has, in the workspace, a panel for every panel of its share.
struct Panels {
    Index per_image, width;
    Panels(Index columns, int lanes) : per_image(ceil_div(columns, max_vectors * lanes)), width(max_vectors * lanes) {}
};

}  // namespace

template <class T>
BufferSizes gram_buffers(Index N, Index C, Index P) {
    const int lanes = table<T>().lanes;
    const Panels forward(C, lanes), backward(P, lanes);
    // Forward: a block of k and the result of a panel. Backward: dg + dg^T, and a panel and its result.
    return {0, N * forward.per_image * forward.width * (k_block + C),
            N * C * C + N * backward.per_image * backward.width * (C + C)};
}

template <class T>
void gram_matrix(Index N, Index C, Index P, Cube<T> f, double scale, T* workspace, T* g) {
    const Table<T>& t = table<T>();
    const Panels panels(C, t.lanes);
    const Index count = N * panels.per_image, each = panels.width * (k_block + C);
    run(threads_for(2.0 * N * C * C * P, count), [&](const Worker& w) {
        const Range mine = share(count, w);
        for (Index p = mine.begin; p < mine.end; ++p) {
            const Index n = p / panels.per_image, first = p % panels.per_image * panels.width;
            const Columns c = plain_columns(C, t.lanes, first / t.lanes, ceil_div(C, t.lanes));
            const Index width = Index(c.vectors) * t.lanes;
            T *block = workspace + p * each, *product = block + k_block * panels.width;
            const T* image = f.data + n * f.s0;
            // Rows from the panel's first column on: what lies above the diagonal blocks is mirrored.
            const Index rows = C - first;
            const int height = tile_height(std::max<Index>(rows, 1), t.max_rows[c.vectors]);
            Index k = 0;
            do {
                const Index depth = std::min(k_block, P - k);
                pack_panel(c, depth, image + k * f.s2, f.s2, f.s1, block);
                for (Index i = 0; i < rows; i += height)
                    t.tile(static_cast<int>(std::min<Index>(height, rows - i)), c.vectors, depth,
                           image + (first + i) * f.s1 + k * f.s2, f.s1, f.s2, block, k ? product + i * width : nullptr,
                           width, t.lanes, product + i * width, width, t.lanes);
                k += depth;
            } while (k < P);
            T* out = g + n * C * C;
            for (Index i = 0; i < rows; ++i) {
                const Index row = first + i;
                for (Index j = 0; j < width && first + j <= row; ++j) {
                    const T value = static_cast<T>(scale) * product[i * width + j];
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
    const Panels panels(P, t.lanes);
    const Index count = N * panels.per_image, each = panels.width * (C + C);
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
            const Index n = p / panels.per_image, first = p % panels.per_image * panels.width;
            const Columns c = plain_columns(P, t.lanes, first / t.lanes, ceil_div(P, t.lanes));
            const Index width = Index(c.vectors) * t.lanes, columns = std::min(width, P - first);
            T *panel = workspace + N * C * C + p * each, *product = panel + panels.width * C;
            pack_panel(c, C, f.data + n * f.s0, f.s1, f.s2, panel);
            multiply_panel(t, C, c.vectors, C, sums + n * C * C, C, Index(1), panel, static_cast<const T*>(nullptr),
                           Index(0), product, width, Index(t.lanes));
            for (Index i = 0; i < C; ++i)
                for (Index j = 0; j < columns; ++j)
                    df[n * df_s0 + i * df_s1 + (first + j) * df_s2] = product[i * width + j];
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
