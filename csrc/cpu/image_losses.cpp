// Content and total-variation losses: sums and differences at the speed of memory. Every sum is taken over a fixed
// chunk by one thread, so that it is the same at any number of threads.
#include "gemm.h"

namespace fastrnn::cpu {

namespace {

// The elements of a strided vector as a contiguous run, copied only if they are not one.
template <class T>
const T* contiguous(const Vec<T>& v, Index first, Index n, T* copy) {
    const T* from = v.data + first * v.stride;
    if (v.stride == 1) return from;
    for (Index i = 0; i < n; ++i) copy[i] = from[i * v.stride];
    return copy;
}

}  // namespace

template <class T>
void squared_distance(Index n, Vec<T> a, Vec<T> b, double* partial) {
    const Table<T>& t = table<T>();
    const Index chunks = ceil_div(n, sum_chunk);
    run(threads_for(3.0 * n, chunks), [&](const Worker& w) {
        const Range mine = share(chunks, w);
        T copy_a[sum_chunk], copy_b[sum_chunk];
        for (Index c = mine.begin; c < mine.end; ++c) {
            const Index first = c * sum_chunk, size = std::min(sum_chunk, n - first);
            partial[c] =
                t.squared_distance(size, contiguous(a, first, size, copy_a), contiguous(b, first, size, copy_b));
        }
    });
}

template <class T>
void scaled_difference(Index n, Vec<T> a, Vec<T> b, double scale, T* out) {
    const Table<T>& t = table<T>();
    const Index chunks = ceil_div(n, sum_chunk);
    run(threads_for(2.0 * n, chunks), [&](const Worker& w) {
        const Range mine = share(chunks, w);
        T copy_a[sum_chunk], copy_b[sum_chunk];
        for (Index c = mine.begin; c < mine.end; ++c) {
            const Index first = c * sum_chunk, size = std::min(sum_chunk, n - first);
            t.scaled_difference(size, contiguous(a, first, size, copy_a), contiguous(b, first, size, copy_b),
                                static_cast<T>(scale), out + first);
        }
    });
}

template <class T>
void tv_loss(Index P, Index H, Index W, Cube<T> img, double* partial) {
    const Table<T>& t = table<T>();
    run(threads_for(6.0 * P * H * W, P), [&](const Worker& w) {
        const Range mine = share(P, w);
        for (Index p = mine.begin; p < mine.end; ++p) {
            double sum = 0;
            for (Index i = 0; i < H && W > 0; ++i) {
                const T* row = img.at(p, i);
                const T* below = i + 1 < H ? img.at(p, i + 1) : nullptr;
                if (img.s2 == 1) {
                    sum += t.tv_row(W, row, below);
                } else {
                    for (Index j = 0; j < W; ++j) {
                        const double across = j + 1 < W ? row[(j + 1) * img.s2] - row[j * img.s2] : T(0);
                        const double down = below ? below[j * img.s2] - row[j * img.s2] : T(0);
                        sum += across * across + down * down;
                    }
                }
            }
            partial[p] = sum;
        }
    });
}

template <class T>
void tv_loss_backward(Index P, Index H, Index W, Cube<T> img, double scale, T* dimg) {
    const Table<T>& t = table<T>();
    run(threads_for(8.0 * P * H * W, P * H), [&](const Worker& w) {
        const Range mine = share(P * H, w);
        for (Index r = mine.begin; r < mine.end; ++r) {
            const Index p = r / H, i = r % H;
            const T *row = img.at(p, i), *above = i > 0 ? img.at(p, i - 1) : nullptr,
                    *below = i + 1 < H ? img.at(p, i + 1) : nullptr;
            t.tv_row_backward(W, img.s2, row, above, below, static_cast<T>(scale), dimg + r * W);
        }
    });
}

template void squared_distance<float>(Index, Vec<float>, Vec<float>, double*);
template void scaled_difference<float>(Index, Vec<float>, Vec<float>, double, float*);
template void tv_loss<float>(Index, Index, Index, Cube<float>, double*);
template void tv_loss_backward<float>(Index, Index, Index, Cube<float>, double, float*);
template void squared_distance<double>(Index, Vec<double>, Vec<double>, double*);
template void scaled_difference<double>(Index, Vec<double>, Vec<double>, double, double*);
template void tv_loss<double>(Index, Index, Index, Cube<double>, double*);
template void tv_loss_backward<double>(Index, Index, Index, Cube<double>, double, double*);

}  // namespace fastrnn::cpu
