// Affine layers: out = x w + b, and its gradients.
//
// One BLAS call would do, and was what this cell fell through to at first. But NumPy's BLAS brings a second thread
// pool, whose workers keep spinning for milliseconds after a product, on the cores that the next kernel needs: one
// training step of the captioner (N=100, W=64, H=256) took 19 to 21 ms with it and 10 to 15 ms with NumPy's pool held
// to one thread (both beside other work on the machine). Here the products run on the same team as everything else.
//
// The right operand is packed once, by all threads; then pieces of the result, one panel by row_piece rows, are shared
// out.
#include "gemm.h"

namespace fastrnn::cpu {

namespace {

// Rows of one piece of a result.
constexpr Index row_piece = 96;

// The panels of a right operand (K, columns).
struct Panels {
    Index columns, K;
    int lanes;
    Index count;

    Panels(Index c, Index k, int l) : columns(c), K(k), lanes(l), count(ceil_div(c, max_vectors * l)) {}
    Index size() const { return count * max_vectors * lanes * K; }
    Columns of(Index p) const { return plain_columns(columns, lanes, p * max_vectors, ceil_div(columns, lanes)); }
    // Only the last panel can be narrower.
    Index start(Index p) const { return p * max_vectors * lanes * K; }
};

template <class T>
void pack(const Worker& w, const Panels& p, const Matrix<T>& B, T* packed) {
    const Range mine = share(p.count, w);
    for (Index i = mine.begin; i < mine.end; ++i)
        pack_panel(table<T>(), p.of(i), p.K, B.data, B.row, B.col, packed + p.start(i));
}

// C (M, columns) = bias + A (M, K) B. bias: (count of vectors * lanes), or null.
template <class T>
void product(const Worker& w, const Panels& p, Index M, const Matrix<T>& A, const T* packed, const T* bias, T* C) {
    const Table<T>& t = table<T>();
    const Index pieces = ceil_div(M, row_piece);
    const Range mine = share(p.count * pieces, w);
    T narrow[row_piece * max_vectors * 16];
    for (Index i = mine.begin; i < mine.end; ++i) {
        const Index panel = i / pieces, first = i % pieces * row_piece, rows = std::min(row_piece, M - first);
        const Columns c = p.of(panel);
        const Index width = Index(c.vectors) * p.lanes, valid = std::min(width, p.columns - c.first[0]);
        T* out = C + first * p.columns + c.first[0];
        const bool whole = valid == width;
        multiply_panel(t, rows, c.vectors, p.K, A.data + first * A.row, A.row, A.col, packed + p.start(panel),
                       bias ? bias + c.first[0] : nullptr, Index(0), whole ? out : narrow, whole ? p.columns : width,
                       Index(p.lanes));
        if (!whole)
            for (Index r = 0; r < rows; ++r) std::copy_n(narrow + r * width, valid, out + r * p.columns);
    }
}

template <class T>
struct ForwardScratch {
    T *packed, *bias;
    Index used;
    ForwardScratch(const Panels& p, T* memory) {
        Carver<T> carve(memory);
        packed = carve.take(p.size());
        bias = carve.take(ceil_div(p.columns, p.lanes) * p.lanes);
        used = carve.used();
    }
};

template <class T>
struct BackwardScratch {
    T *w, *dout;
    Index used;
    BackwardScratch(const Panels& for_dx, const Panels& for_dw, T* memory) {
        Carver<T> carve(memory);
        w = carve.take(for_dx.size());
        dout = carve.take(for_dw.size());
        used = carve.used();
    }
};

}  // namespace

template <class T>
BufferSizes affine_buffers(Index N, Index D, Index M) {
    const int lanes = table<T>().lanes;
    return {0, ForwardScratch<T>(Panels(M, D, lanes), nullptr).used,
            BackwardScratch<T>(Panels(D, M, lanes), Panels(M, N, lanes), nullptr).used};
}

template <class T>
void affine_forward(Index N, Index D, Index M, Matrix<T> x, Matrix<T> w, Vec<T> b, T* workspace, T* out) {
    const Panels panels(M, D, table<T>().lanes);
    const ForwardScratch<T> scratch(panels, workspace);
    for (Index j = 0; j < M; ++j) scratch.bias[j] = b(j);
    std::fill(scratch.bias + M, scratch.bias + ceil_div(M, panels.lanes) * panels.lanes, T(0));
    run(threads_for(2.0 * N * D * M, panels.count * ceil_div(N, row_piece)), [&](const Worker& worker) {
        pack(worker, panels, w, scratch.packed);
        worker.barrier();
        product(worker, panels, N, x, scratch.packed, scratch.bias, out);
    });
}

template <class T>
void affine_backward(Index N, Index D, Index M, Matrix<T> dout, Matrix<T> x, Matrix<T> w, T* workspace, T* dx, T* dw,
                     T* db) {
    const Table<T>& t = table<T>();
    const Panels for_dx(D, M, t.lanes), for_dw(M, N, t.lanes);
    const BackwardScratch<T> scratch(for_dx, for_dw, workspace);
    const Index most = std::max(for_dx.count * ceil_div(N, row_piece), for_dw.count * ceil_div(D, row_piece));
    run(threads_for(4.0 * N * D * M, most), [&](const Worker& worker) {
        pack(worker, for_dx, Matrix<T>{w.data, w.col, w.row}, scratch.w);
        pack(worker, for_dw, dout, scratch.dout);
        worker.barrier();
        product(worker, for_dx, N, dout, scratch.w, static_cast<const T*>(nullptr), dx);
        product(worker, for_dw, D, Matrix<T>{x.data, x.col, x.row}, scratch.dout, static_cast<const T*>(nullptr), dw);
        // Column sums in slices of rows, so that rounding does not grow with N.
        const Range mine = share(for_dw.count, worker);
        for (Index p = mine.begin; p < mine.end; ++p) {
            const Columns c = for_dw.of(p);
            const Index width = Index(c.vectors) * t.lanes;
            T total[max_vectors * 16] = {}, slice[max_vectors * 16];
            for (Index n = 0; n < N;) {
                std::fill(slice, slice + width, T(0));
                for (const Index end = std::min(N, n + 64); n < end; ++n)
                    t.add(width, scratch.dout + for_dw.start(p) + n * width, slice);
                t.add(width, slice, total);
            }
            std::copy_n(total, std::min(width, M - c.first[0]), db + c.first[0]);
        }
    });
}

template BufferSizes affine_buffers<float>(Index, Index, Index);
template void affine_forward<float>(Index, Index, Index, Matrix<float>, Matrix<float>, Vec<float>, float*, float*);
template void affine_backward<float>(Index, Index, Index, Matrix<float>, Matrix<float>, Matrix<float>, float*, float*,
                                     float*, float*);
template BufferSizes affine_buffers<double>(Index, Index, Index);
template void affine_forward<double>(Index, Index, Index, Matrix<double>, Matrix<double>, Vec<double>, double*,
                                     double*);
template void affine_backward<double>(Index, Index, Index, Matrix<double>, Matrix<double>, Matrix<double>, double*,
                                      double*, double*, double*);

}  // namespace fastrnn::cpu
