// Softmax loss over rows of scores, and its gradient: a row is read into dx as exponentials, then scaled, while it is
// in the cache.
#include "gemm.h"

namespace fastrnn::cpu {

template <class T>
void temporal_softmax_loss(Index R, Index V, Matrix<T> x, Vec<Index> y, Vec<unsigned char> mask, Index count,
                           double* row_loss, T* dx) {
    const Table<T>& t = table<T>();
    const T scale = static_cast<T>(1.0 / static_cast<double>(count));
    // An exponential costs some twenty operations.
    run(threads_for(20.0 * R * V, R), [&](const Worker& w) {
        const Range mine = share(R, w);
        for (Index r = mine.begin; r < mine.end; ++r) {
            T* out = dx + r * V;
            if (mask(r)) {
                row_loss[r] = t.softmax_row(V, x.data + r * x.row, x.col, y(r), scale, out);
            } else {
                row_loss[r] = 0;
                std::fill(out, out + V, T(0));
            }
        }
    });
}

template void temporal_softmax_loss<float>(Index, Index, Matrix<float>, Vec<Index>, Vec<unsigned char>, Index, double*,
                                           float*);
template void temporal_softmax_loss<double>(Index, Index, Matrix<double>, Vec<Index>, Vec<unsigned char>, Index,
                                            double*, double*);

}  // namespace fastrnn::cpu
