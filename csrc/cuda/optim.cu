// Update rules: one pass over the weights, their gradient and their state, at the speed of the memory.
//
// Any number of arrays in one launch: a table of pointers and sizes is a parameter of the kernel (which the hardware
// keeps in constant memory), so that nothing has to be copied to the device first. Arrays are cut into chunks of 4,096
// elements, one a block; a block finds its array among the table's by bisection. A table has room for 48 arrays within
// the 4 KB that every driver takes as parameters; more arrays take one launch for each 48.
//
// Bytes an element, float32 (float64: twice): sgd 12, sgd_momentum 20, rmsprop 20, adam 28, each read or written once.
// Floor on an H100 (3.35 TB/s): Adam of 10 million weights, 280 MB, 84 us. Arithmetic: Adam makes some 50 operations
// an element, a division and a root as IEEE rounds them included: 0.4 clocks of an SM beside 1.9 for its bytes.
// Loads in flight, Adam: an SM's 1,024 threads (60 registers each) with four loads of 16 bytes, 64 KB, beside the 15 KB
// or so that hide 600 ns of latency; so a thread need not hold more than one pack at a time. Sums need no order: an
// element's result depends on that element alone.
#include <cmath>

#include "pack.h"

namespace fastrnn::cuda {

namespace {

constexpr int threads = 256;
constexpr Index chunk = 4096;
constexpr int capacity = 48;
constexpr int most_arrays = 7;  // of Adam: w, dw, m, v and the new w, m, v

template <class T>
struct Table {
    T* arrays[most_arrays][capacity];  // inputs of the rule, then its outputs
    Index sizes[capacity];
    unsigned first_block[capacity];  // of each array; those past the last: as many as there are blocks
};

// Rules: from x, an element of each input, make y, one of each output. Settings were rounded to T once, on the host.

template <class T>
struct Sgd {
    static constexpr int inputs = 2, outputs = 1;
    T lr;
    __device__ __forceinline__ void operator()(const T (&x)[inputs], T (&y)[outputs]) const { y[0] = x[0] - lr * x[1]; }
};

template <class T>
struct Momentum {
    static constexpr int inputs = 3, outputs = 2;
    T lr, momentum;
    __device__ __forceinline__ void operator()(const T (&x)[inputs], T (&y)[outputs]) const {
        y[1] = momentum * x[2] - lr * x[1];
        y[0] = x[0] + y[1];
    }
};

template <class T>
struct RmsProp {
    static constexpr int inputs = 3, outputs = 2;
    T lr, decay, rest, epsilon;
    __device__ __forceinline__ void operator()(const T (&x)[inputs], T (&y)[outputs]) const {
        y[1] = decay * x[2] + rest * (x[1] * x[1]);
        y[0] = x[0] - lr * x[1] / (std::sqrt(y[1]) + epsilon);
    }
};

template <class T>
struct Adam {
    static constexpr int inputs = 4, outputs = 3;
    T lr, beta1, rest1, beta2, rest2, epsilon, correction2;  // lr holds the first moment's correction
    __device__ __forceinline__ void operator()(const T (&x)[inputs], T (&y)[outputs]) const {
        y[1] = beta1 * x[2] + rest1 * x[1];
        y[2] = beta2 * x[3] + rest2 * (x[1] * x[1]);
        y[0] = x[0] - lr * y[1] / (std::sqrt(y[2] * correction2) + epsilon);
    }
};

// One pack of every input at element i, and of every output.
template <class P, class T, class Rule>
__device__ __forceinline__ void update_pack(const Rule& rule, T* const (&at)[most_arrays], Index i) {
    P in[Rule::inputs], out[Rule::outputs];
#pragma unroll
    for (int a = 0; a < Rule::inputs; ++a) in[a] = *reinterpret_cast<const P*>(at[a] + i);
#pragma unroll
    for (int e = 0; e < P::size; ++e) {
        T x[Rule::inputs], y[Rule::outputs];
#pragma unroll
        for (int a = 0; a < Rule::inputs; ++a) x[a] = in[a].x[e];
        rule(x, y);
#pragma unroll
        for (int a = 0; a < Rule::outputs; ++a) out[a].x[e] = y[a];
    }
#pragma unroll
    for (int a = 0; a < Rule::outputs; ++a) *reinterpret_cast<P*>(at[Rule::inputs + a] + i) = out[a];
}

template <class T, class Rule>
__global__ void __launch_bounds__(threads) update_kernel(const Table<T> table, Rule rule) {
    int low = 0, high = capacity;  // the last array whose first block is not past this one
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (table.first_block[middle] <= blockIdx.x)
            low = middle;
        else
            high = middle;
    }
    const Index begin = Index(blockIdx.x - table.first_block[low]) * chunk;
    const Index count = least(chunk, table.sizes[low] - begin);
    T* at[most_arrays];
    std::uintptr_t addresses = 0;
#pragma unroll
    for (int a = 0; a < Rule::inputs + Rule::outputs; ++a) {
        at[a] = table.arrays[a][low] + begin;
        addresses |= reinterpret_cast<std::uintptr_t>(at[a]);
    }
    Index done = 0;
    if (addresses % sizeof(Pack<T>) == 0) {
        done = count - count % Pack<T>::size;
        for (Index i = Index(threadIdx.x) * Pack<T>::size; i < done; i += threads * Pack<T>::size)
            update_pack<Pack<T>>(rule, at, i);
    }
    for (Index i = done + threadIdx.x; i < count; i += threads) update_pack<Single<T>>(rule, at, i);
}

template <class T, class Rule>
Error update(Stream stream, Index count, const Index* sizes, T* const* arrays, Rule rule) {
    for (Index i = 0; i < count;) {
        Table<T> table{};
        unsigned blocks = 0;
        int filled = 0;
        for (; i < count && filled < capacity; ++i) {
            if (sizes[i] == 0) continue;
            for (int a = 0; a < Rule::inputs + Rule::outputs; ++a) table.arrays[a][filled] = arrays[a * count + i];
            table.sizes[filled] = sizes[i];
            table.first_block[filled++] = blocks;
            blocks += static_cast<unsigned>(ceil_div(sizes[i], chunk));
        }
        for (int rest = filled; rest < capacity; ++rest) table.first_block[rest] = blocks;
        const Error error = launch(update_kernel<T, Rule>, dim3(blocks), dim3(threads), 0,
                                   static_cast<cudaStream_t>(stream), table, rule);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

}  // namespace

template <class T>
Error sgd(Stream stream, Index count, const Index* sizes, T* const* arrays, double lr) {
    return update(stream, count, sizes, arrays, Sgd<T>{static_cast<T>(lr)});
}

template <class T>
Error sgd_momentum(Stream stream, Index count, const Index* sizes, T* const* arrays, double lr, double momentum) {
    return update(stream, count, sizes, arrays, Momentum<T>{static_cast<T>(lr), static_cast<T>(momentum)});
}

template <class T>
Error rmsprop(Stream stream, Index count, const Index* sizes, T* const* arrays, double lr, double decay,
              double epsilon) {
    return update(
        stream, count, sizes, arrays,
        RmsProp<T>{static_cast<T>(lr), static_cast<T>(decay), static_cast<T>(1 - decay), static_cast<T>(epsilon)});
}

template <class T>
Error adam(Stream stream, Index count, const Index* sizes, T* const* arrays, double lr, double beta1, double beta2,
           double epsilon, double t) {
    const double correction1 = 1 / (1 - std::pow(beta1, t)), correction2 = 1 / (1 - std::pow(beta2, t));
    return update(stream, count, sizes, arrays,
                  Adam<T>{static_cast<T>(lr * correction1), static_cast<T>(beta1), static_cast<T>(1 - beta1),
                          static_cast<T>(beta2), static_cast<T>(1 - beta2), static_cast<T>(epsilon),
                          static_cast<T>(correction2)});
}

template Error sgd<float>(Stream, Index, const Index*, float* const*, double);
template Error sgd<double>(Stream, Index, const Index*, double* const*, double);
template Error sgd_momentum<float>(Stream, Index, const Index*, float* const*, double, double);
template Error sgd_momentum<double>(Stream, Index, const Index*, double* const*, double, double);
template Error rmsprop<float>(Stream, Index, const Index*, float* const*, double, double, double);
template Error rmsprop<double>(Stream, Index, const Index*, double* const*, double, double, double);
template Error adam<float>(Stream, Index, const Index*, float* const*, double, double, double, double, double);
template Error adam<double>(Stream, Index, const Index*, double* const*, double, double, double, double, double);

}  // namespace fastrnn::cuda
