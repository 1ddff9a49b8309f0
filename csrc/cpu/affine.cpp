// Affine layers: out = x w + b, and its gradients.
//
// One BLAS call would do, and was what this cell fell through to at first. But NumPy's BLAS brings a second thread
// pool, whose workers keep spinning for milliseconds after a product, on the cores that the next kernel needs: one
// training step of the captioner (N=100, W=64, H=256) took 19 to 21 ms with it and 10 to 15 ms with NumPy's pool held
// to one thread (both beside other work on the machine). Here the products run on the same team as everything else.
#include "products.h"

namespace fastrnn::cpu {

namespace {

template <class T>
struct ForwardScratch {
    T *bias, *spill;
    Index used;
    ForwardScratch(Index N, Index M, T* memory) {
        const int lanes = table<T>().lanes;
        Carver<T> carve(memory);
        bias = carve.take(ceil_div(M, lanes) * lanes);
        spill = carve.take(spill_size<T>(1, N, M, true));
        used = carve.used();
    }
};

template <class T>
struct BackwardScratch {
    T *for_dx, *for_dw;  // spill of each product
    Index used;
    BackwardScratch(Index N, Index D, Index M, T* memory) {
        Carver<T> carve(memory);
        for_dx = carve.take(spill_size<T>(1, N, D, true));
        for_dw = carve.take(spill_size<T>(1, D, M, true));
        used = carve.used();
    }
};

template <class T>
Cube<T> plain(const Matrix<T>& m) {
    return {m.data, 0, m.row, m.col};
}
template <class T>
Cube<T> transposed(const Matrix<T>& m) {
    return {m.data, 0, m.col, m.row};
}

}  // namespace

template <class T>
BufferSizes affine_buffers(Index N, Index D, Index M) {
    return {0, ForwardScratch<T>(N, M, nullptr).used, BackwardScratch<T>(N, D, M, nullptr).used};
}

template <class T>
void affine_forward(Index N, Index D, Index M, Matrix<T> x, Matrix<T> w, Vec<T> b, T* workspace, T* out) {
    const int lanes = table<T>().lanes;
    const ForwardScratch<T> scratch(N, M, workspace);
    for (Index j = 0; j < M; ++j) scratch.bias[j] = b(j);
    std::fill(scratch.bias + M, scratch.bias + ceil_div(M, lanes) * lanes, T(0));
    run(threads_for(2.0 * N * D * M, ceil_div(M, lanes) * N), [&](const Worker& worker) {
        multiply_part(worker, 1, N, M, D, plain(x), plain(w), static_cast<const T*>(scratch.bias), scratch.spill,
                      Result<T>{out, 0, M, 1}, [](const Columns&, Index, Index, const T*) {});
    });
}

template <class T>
void affine_backward(Index N, Index D, Index M, Matrix<T> dout, Matrix<T> x, Matrix<T> w, T* workspace, T* dx, T* dw,
                     T* db) {
    const Table<T>& t = table<T>();
    const BackwardScratch<T> scratch(N, D, M, workspace);
    run(threads_for(4.0 * N * D * M, ceil_div(std::max(D, M), t.lanes) * std::max(N, D)), [&](const Worker& worker) {
        multiply_part(worker, 1, N, D, M, plain(dout), transposed(w), static_cast<const T*>(nullptr), scratch.for_dx,
                      Result<T>{dx, 0, D, 1}, [](const Columns&, Index, Index, const T*) {});
        const auto sum = [&](const Columns& c, Index k, Index depth, const T* panel) {
            // Between blocks the sum stands in db.
            T total[max_vectors * max_lanes<T>] = {};
            const Index valid = std::min<Index>(Index(c.vectors) * t.lanes, M - c.first[0]);
            if (k) std::copy_n(db + c.first[0], valid, total);
            t.column_sums(c.vectors, depth, panel, Index(c.vectors) * t.lanes, total);
            std::copy_n(total, valid, db + c.first[0]);
        };
        multiply_part(worker, 1, D, M, N, transposed(x), plain(dout), static_cast<const T*>(nullptr), scratch.for_dw,
                      Result<T>{dw, 0, M, 1}, sum);
        // With no rows of dw there was no product beside which to sum.
        if (D || worker.index) return;
        for (Index j = 0; j < M; ++j) {
            db[j] = 0;
            for (Index n = 0; n < N; ++n) db[j] += dout.data[n * dout.row + j * dout.col];
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
