// Word embedding: gather rows, and add them back.
//
// Backward sorts the positions by word, by counting (ids are small integers, so nothing is compared), and then gives
// every row of dW to one thread, which adds its rows of dout in order of position. No two threads write one row, so
// there are no atomics and the result is the same at any number of threads.
#include "gemm.h"

namespace fastrnn::cpu {

template <class T>
void word_embedding_forward(Index n, Index D, Vec<Index> ids, Matrix<T> W, T* out) {
    run(threads_for(static_cast<double>(n) * D, n), [&](const Worker& w) {
        const Range mine = share(n, w);
        for (Index i = mine.begin; i < mine.end; ++i) {
            const T* row = W.data + ids(i) * W.row;
            if (W.col == 1)
                std::copy_n(row, D, out + i * D);
            else
                for (Index d = 0; d < D; ++d) out[i * D + d] = row[d * W.col];
        }
    });
}

template <class T>
void word_embedding_backward(Index n, Index V, Index D, Vec<Index> ids, Matrix<T> dout, Index* workspace, T* dW) {
    const Table<T>& t = table<T>();
    Index* start = workspace;             // (V + 1): where a word's positions begin
    Index* position = workspace + V + 1;  // (n): positions sorted by word
    std::fill(start, start + V + 1, Index(0));
    for (Index i = 0; i < n; ++i) ++start[ids(i) + 1];
    for (Index v = 0; v < V; ++v) start[v + 1] += start[v];
    // Filling moves each start to the next word's; they are moved back after.
    for (Index i = 0; i < n; ++i) position[start[ids(i)]++] = i;
    for (Index v = V; v > 0; --v) start[v] = start[v - 1];
    start[0] = 0;

    const double work = static_cast<double>(n + V) * D;
    run(threads_for(work, V), [&](const Worker& w) {
        // Words are cut where rows to write plus rows to add reach each worker's share.
        const auto border = [&](Index part) {
            const Index goal = (n + V) * part / w.count;
            Index low = 0, high = V;
            while (low < high) {
                const Index middle = (low + high) / 2;
                if (start[middle] + middle < goal)
                    low = middle + 1;
                else
                    high = middle;
            }
            return part == w.count ? V : low;
        };
        const Index end = border(w.index + 1);
        for (Index v = border(w.index); v < end; ++v) {
            T* sum = dW + v * D;
            std::fill(sum, sum + D, T(0));
            for (Index p = start[v]; p < start[v + 1]; ++p) {
                const T* row = dout.data + position[p] * dout.row;
                if (dout.col == 1)
                    t.add(D, row, sum);
                else
                    for (Index d = 0; d < D; ++d) sum[d] += row[d * dout.col];
            }
        }
    });
}

template void word_embedding_forward<float>(Index, Index, Vec<Index>, Matrix<float>, float*);
template void word_embedding_backward<float>(Index, Index, Index, Vec<Index>, Matrix<float>, Index*, float*);
template void word_embedding_forward<double>(Index, Index, Vec<Index>, Matrix<double>, double*);
template void word_embedding_backward<double>(Index, Index, Index, Vec<Index>, Matrix<double>, Index*, double*);

}  // namespace fastrnn::cpu
