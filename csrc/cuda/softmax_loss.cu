// Softmax loss: rows of scores become their gradient, in place or not, and a loss a row; and what stands around that
// where the scores come from a product with a vocabulary, chunk by chunk (fastrnn/cuda/softmax_loss.py).
//
// Softmax with the maximum m of the row taken out: loss = log(sum_j exp(x_j - m)) - (x_y - m), and its gradient
// (exp(x_j - m) / sum - [j = y]) / count (Bridle 1990). An element is read once and written once, 2 sizeof(T) bytes,
// for some fifteen operations, an exponential among them: at 3.35 TB/s, 2.4 ps an element in float32, an H100 issues 60
// operations. So what bounds it is the memory, and the exponential of the runtime, accurate to 2 ulp, costs nothing.
//
// A row is cut by its length V:
//   up to 1024       one warp a row, the row in its registers: 32 loads under way a lane, four rows a block
//   up to what fits  one block a row, the row in shared memory (58,000 words in float32 on an H100): each thread meets
//                    only what it wrote itself, so that barriers stand at the two reductions alone
//   beyond           one block a row, read twice: first the running maximum and the sum under it (Milakov and
//                    Gimelshein 2018), then the gradients
// Loads are of single elements, neighbours in neighbouring lanes: with rows in registers enough of them are under way
// that 16-byte loads, which not every row stride allows, would bring nothing but fewer instructions.
//
// Sums of exponentials are taken in T over few elements, then in double; over columns and rows likewise, each by one
// owner in an order of its own: the same bits on every run.
#include <limits>

#include "device.h"

namespace fastrnn::cuda {

namespace {

constexpr int warps_of_rows = 4;       // a block of softmax_warp_kernel
constexpr int most_in_registers = 32;  // elements of a lane
constexpr int most_threads = 1024;     // of a block
constexpr int long_threads = 512;      // of softmax_long_kernel, which needs more registers
constexpr int most_warps = most_threads / warp_size;
constexpr int column_groups = 8;            // rows that a block of column_sums_kernel reads at once
constexpr int rows_in_T = 16;               // rows summed in T before double takes over
constexpr unsigned most_blocks = 1u << 20;  // kernels stride over what is more

// Loads under way in the kernels of longer rows, 32 bytes: twice as many doubles would spill.
template <class T>
constexpr int unrolled = 32 / sizeof(T);

template <class T>
constexpr T infinity = std::numeric_limits<T>::infinity();

// Rows of scores and what they are held against. Row i is row `number(i)` of y and mask.
template <class T>
struct Rows {
    Index R, V;
    Matrix<T> x;
    Vec<T> bias;  // added to every row; data null: none
    Vec<Index> y;
    Vec<unsigned char> mask;
    const Index* rows;  // their numbers, all of which count; null: they follow each other from `first` on
    Index first;

    __device__ __forceinline__ Index number(Index i) const { return rows ? rows[first + i] : first + i; }
    __device__ __forceinline__ bool counts(Index i) const { return rows || mask(first + i); }
    __device__ __forceinline__ T score(Index i, Index j) const {
        const T s = x(i, j);
        return bias.data ? s + bias(j) : s;
    }
};

// What becomes of them.
template <class T>
struct Results {
    double scale;      // 1 / count
    double* row_loss;  // (R)
    T* dx;             // (R,V), which may be the scores
};

// The larger; a NaN stays.
template <class T>
__device__ __forceinline__ T larger(T x, T y) {
    return x < y || y != y ? y : x;
}

// log(sum) of exponentials under `top`, less the right word's score under it.
template <class T>
__device__ __forceinline__ double loss_of(double sum, T top, T chosen) {
    return std::log(sum) - (static_cast<double>(chosen) - static_cast<double>(top));
}

template <class T, int n>
__global__ void __launch_bounds__(warps_of_rows* warp_size) softmax_warp_kernel(Rows<T> in, Results<T> out) {
    const Index lane = threadIdx.x % warp_size, stride = Index(gridDim.x) * warps_of_rows;
    for (Index i = blockIdx.x * Index(warps_of_rows) + threadIdx.x / warp_size; i < in.R; i += stride) {
        T* dx = out.dx + i * in.V;
        if (!in.counts(i)) {
            for (Index j = lane; j < in.V; j += warp_size) dx[j] = 0;
            if (lane == 0) out.row_loss[i] = 0;
            continue;
        }
        const Index word = in.y(in.number(i));
        T e[n], top = -infinity<T>;
#pragma unroll
        for (int k = 0; k < n; ++k) {
            const Index j = lane + k * warp_size;
            e[k] = j < in.V ? in.score(i, j) : -infinity<T>;
        }
        const T chosen = in.score(i, word);
        __syncwarp();  // before anybody writes where the scores were
#pragma unroll
        for (int k = 0; k < n; ++k) top = larger(top, e[k]);
        top = warp_max(top);
        T sums[4] = {};
#pragma unroll
        for (int k = 0; k < n; ++k) sums[k % 4] += e[k] = std::exp(e[k] - top);
        const double sum = warp_sum(static_cast<double>((sums[0] + sums[1]) + (sums[2] + sums[3])));
        const T scale = static_cast<T>(out.scale), factor = static_cast<T>(out.scale / sum);
#pragma unroll
        for (int k = 0; k < n; ++k) {
            const Index j = lane + k * warp_size;
            if (j < in.V) dx[j] = e[k] * factor - (j == word ? scale : T(0));
        }
        if (lane == 0) out.row_loss[i] = loss_of(sum, top, chosen);
    }
}

// Reductions over a block, the same bits in every thread; each has memory of its own, (most_warps) of them.
__device__ __forceinline__ double block_sum(double x, double* of_warps) {
    x = warp_sum(x);
    if (threadIdx.x % warp_size == 0) of_warps[threadIdx.x / warp_size] = x;
    __syncthreads();
    const unsigned lane = threadIdx.x % warp_size;
    return warp_sum(lane < blockDim.x / warp_size ? of_warps[lane] : 0.0);
}
template <class T>
__device__ __forceinline__ T block_max(T x, T* of_warps) {
    x = warp_max(x);
    if (threadIdx.x % warp_size == 0) of_warps[threadIdx.x / warp_size] = x;
    __syncthreads();
    const unsigned lane = threadIdx.x % warp_size;
    return warp_max(lane < blockDim.x / warp_size ? of_warps[lane] : -infinity<T>);
}

// Bytes of both, before the row.
constexpr std::size_t reduction_bytes = 2 * most_warps * sizeof(double);

// Rows that count are given to `turn`, a block each; others are cleared.
template <class T, class F>
__device__ __forceinline__ void for_rows_that_count(const Rows<T>& in, const Results<T>& out, F&& turn) {
    for (Index i = blockIdx.x; i < in.R; i += gridDim.x) {
        if (in.counts(i)) {
            turn(i);
        } else {
            for (Index j = threadIdx.x; j < in.V; j += blockDim.x) out.dx[i * in.V + j] = 0;
            if (threadIdx.x == 0) out.row_loss[i] = 0;
        }
    }
}

template <class T>
__global__ void __launch_bounds__(most_threads) softmax_shared_kernel(Rows<T> in, Results<T> out) {
    double* sums = shared_memory<double>();
    T* tops = reinterpret_cast<T*>(sums + most_warps);
    T* row = reinterpret_cast<T*>(sums + 2 * most_warps);
    const Index step = Index(blockDim.x) * unrolled<T>;
    for_rows_that_count(in, out, [&](Index i) {
        const Index word = in.y(in.number(i));
        const T chosen = in.score(i, word);  // before the barriers, after which the gradient takes its place
        T top = -infinity<T>;
        for (Index start = threadIdx.x; start < in.V; start += step) {
            T x[unrolled<T>];
#pragma unroll
            for (int k = 0; k < unrolled<T>; ++k) {
                const Index j = start + k * Index(blockDim.x);
                x[k] = j < in.V ? in.score(i, j) : -infinity<T>;
            }
#pragma unroll
            for (int k = 0; k < unrolled<T>; ++k) {
                const Index j = start + k * Index(blockDim.x);
                if (j < in.V) row[j] = x[k];
                top = larger(top, x[k]);
            }
        }
        top = block_max(top, tops);
        double sum = 0;
        for (Index start = threadIdx.x; start < in.V; start += step) {
            T part = 0;
#pragma unroll
            for (int k = 0; k < unrolled<T>; ++k) {
                const Index j = start + k * Index(blockDim.x);
                if (j < in.V) part += row[j] = std::exp(row[j] - top);
            }
            sum += part;
        }
        sum = block_sum(sum, sums);
        const T scale = static_cast<T>(out.scale), factor = static_cast<T>(out.scale / sum);
        for (Index j = threadIdx.x; j < in.V; j += blockDim.x)
            out.dx[i * in.V + j] = row[j] * factor - (j == word ? scale : T(0));
        if (threadIdx.x == 0) out.row_loss[i] = loss_of(sum, top, chosen);
    });
}

template <class T>
__global__ void __launch_bounds__(long_threads, 1) softmax_long_kernel(Rows<T> in, Results<T> out) {
    double* sums = shared_memory<double>();
    T* tops = reinterpret_cast<T*>(sums + most_warps);
    const Index step = Index(blockDim.x) * unrolled<T>;
    for_rows_that_count(in, out, [&](Index i) {
        const Index word = in.y(in.number(i));
        const T chosen = in.score(i, word);
        T mine = -infinity<T>;
        double sum = 0;  // of exponentials under `mine`
        for (Index start = threadIdx.x; start < in.V; start += step) {
            T x[unrolled<T>], higher = mine, part = 0;
#pragma unroll
            for (int k = 0; k < unrolled<T>; ++k) {
                const Index j = start + k * Index(blockDim.x);
                x[k] = j < in.V ? in.score(i, j) : -infinity<T>;
            }
#pragma unroll
            for (int k = 0; k < unrolled<T>; ++k) higher = larger(higher, x[k]);
            if (!(higher == mine)) sum *= std::exp(static_cast<double>(mine) - static_cast<double>(higher));
            mine = higher;
            // Where nothing but -infinity was met, exponentials are 0, not those of -infinity less itself.
            const T under = mine == -infinity<T> ? T(0) : mine;
#pragma unroll
            for (int k = 0; k < unrolled<T>; ++k) part += std::exp(x[k] - under);
            sum += part;
        }
        const T top = block_max(mine, tops);
        // A thread without scores has a maximum of -infinity, and a sum of 0.
        if (!(mine == top)) sum *= std::exp(static_cast<double>(mine) - static_cast<double>(top));
        sum = block_sum(sum, sums);
        const T scale = static_cast<T>(out.scale), factor = static_cast<T>(out.scale / sum);
        for (Index start = threadIdx.x; start < in.V; start += step) {
            T x[unrolled<T>];
#pragma unroll
            for (int k = 0; k < unrolled<T>; ++k) {
                const Index j = start + k * Index(blockDim.x);
                x[k] = j < in.V ? in.score(i, j) : T(0);
            }
#pragma unroll
            for (int k = 0; k < unrolled<T>; ++k) {
                const Index j = start + k * Index(blockDim.x);
                if (j < in.V) out.dx[i * in.V + j] = std::exp(x[k] - top) * factor - (j == word ? scale : T(0));
            }
        }
        if (threadIdx.x == 0) out.row_loss[i] = loss_of(sum, top, chosen);
    });
}

template <class T>
__global__ void __launch_bounds__(most_threads) total_kernel(Index n, const double* losses, double divisor, T* total) {
    double sum = 0;
    for (Index i = threadIdx.x; i < n; i += blockDim.x) sum += losses[i];
    sum = block_sum(sum, shared_memory<double>());
    if (threadIdx.x == 0) *total = static_cast<T>(sum / divisor);
}

template <class T>
__global__ void __launch_bounds__(most_threads)
    take_rows_kernel(Index R, Index H, Index steps, Cube<T> h, Vec<unsigned char> mask, const Index* rows, Index first,
                     T* out) {
    for (Index i = blockIdx.x; i < R; i += gridDim.x) {
        const Index r = rows ? rows[first + i] : first + i;
        const bool counts = rows || mask(r);
        const T* from = h.at(r / steps, r % steps);
        for (Index k = threadIdx.x; k < H; k += blockDim.x) out[i * H + k] = counts ? from[k * h.s2] : T(0);
    }
}

template <class T>
__global__ void __launch_bounds__(most_threads)
    put_rows_kernel(Index R, Index H, const T* from, const Index* rows, Index first, T* dh) {
    for (Index i = blockIdx.x; i < R; i += gridDim.x)
        for (Index k = threadIdx.x; k < H; k += blockDim.x) dh[rows[first + i] * H + k] = from[i * H + k];
}

template <class T>
__global__ void __launch_bounds__(most_threads) clear_masked_kernel(Index R, Index H, Vec<unsigned char> mask, T* dh) {
    for (Index i = blockIdx.x; i < R; i += gridDim.x)
        if (!mask(i))
            for (Index k = threadIdx.x; k < H; k += blockDim.x) dh[i * H + k] = 0;
}

// A warp reads 32 columns of a row, the block column_groups rows at a time.
template <class T>
__global__ void __launch_bounds__(column_groups* warp_size)
    column_sums_kernel(Index R, Index V, const T* a, bool add, T* sums) {
    double* parts = shared_memory<double>();  // (column_groups, warp_size)
    const Index lane = threadIdx.x % warp_size, group = threadIdx.x / warp_size;
    const Index column = blockIdx.x * Index(warp_size) + lane;
    double sum = 0;
    if (column < V) {
        for (Index start = group; start < R; start += column_groups * rows_in_T) {
            T part = 0;
#pragma unroll
            for (int k = 0; k < rows_in_T; ++k) {
                const Index i = start + k * column_groups;
                if (i < R) part += a[i * V + column];
            }
            sum += part;
        }
    }
    parts[group * warp_size + lane] = sum;
    __syncthreads();
    if (group == 0 && column < V) {
        for (int g = 1; g < column_groups; ++g) sum += parts[g * warp_size + lane];
        sums[column] = static_cast<T>(add ? static_cast<double>(sums[column]) + sum : sum);
    }
}

dim3 blocks_for(Index n) {
    return dim3(static_cast<unsigned>(least<Index>(n, most_blocks)));
}
// Threads of a block that shares a row of n elements, `each` of them a thread where there are enough.
dim3 threads_for(Index n, Index each) {
    return dim3(static_cast<unsigned>(least<Index>(most_threads, ceil_div(most<Index>(n, 1), each * warp_size) * 32)));
}

template <class T>
Error turn_into_gradient(cudaStream_t stream, const Rows<T>& in, const Results<T>& out) {
    const auto by_warps = [&](void (*kernel)(Rows<T>, Results<T>)) {
        return launch(kernel, blocks_for(ceil_div(in.R, warps_of_rows)), dim3(warps_of_rows * warp_size), 0, stream, in,
                      out);
    };
    if (in.V <= 4 * warp_size) return by_warps(softmax_warp_kernel<T, 4>);
    if (in.V <= 16 * warp_size) return by_warps(softmax_warp_kernel<T, 16>);
    if (in.V <= most_in_registers * warp_size) return by_warps(softmax_warp_kernel<T, most_in_registers>);
    Device device;
    const cudaError_t error = current_device(device);
    if (error != cudaSuccess) return error;
    const std::size_t bytes = reduction_bytes + static_cast<std::size_t>(in.V) * sizeof(T);
    const dim3 threads = threads_for(in.V, 2 * unrolled<T>);
    if (bytes <= device.shared)
        return launch(softmax_shared_kernel<T>, blocks_for(in.R), threads, bytes, stream, in, out);
    return launch(softmax_long_kernel<T>, blocks_for(in.R), dim3(long_threads), reduction_bytes, stream, in, out);
}

}  // namespace

template <class T>
Error temporal_softmax_loss(Stream stream, Index R, Index V, Matrix<T> x, Vec<Index> y, Vec<unsigned char> mask,
                            Index count, double* row_loss, T* dx) {
    const Rows<T> in{R, V, x, {nullptr, 0}, y, mask, nullptr, 0};
    return turn_into_gradient<T>(static_cast<cudaStream_t>(stream), in,
                                 {1.0 / static_cast<double>(count), row_loss, dx});
}

template <class T>
Error softmax_chunk(Stream stream, Index R, Index V, T* scores, Vec<T> b, Vec<Index> y, Vec<unsigned char> mask,
                    const Index* rows, Index first, Index count, double* row_loss) {
    const Rows<T> in{R, V, {scores, V, 1}, b, y, mask, rows, first};
    return turn_into_gradient<T>(static_cast<cudaStream_t>(stream), in,
                                 {1.0 / static_cast<double>(count), row_loss, scores});
}

template <class T>
Error total_loss(Stream stream, Index n, const double* losses, double divisor, T* total) {
    return launch(total_kernel<T>, dim3(1), threads_for(n, 4), most_warps * sizeof(double),
                  static_cast<cudaStream_t>(stream), n, losses, divisor, total);
}

template <class T>
Error take_rows(Stream stream, Index R, Index H, Index steps, Cube<T> h, Vec<unsigned char> mask, const Index* rows,
                Index first, T* out) {
    return launch(take_rows_kernel<T>, blocks_for(R), threads_for(H, 4), 0, static_cast<cudaStream_t>(stream), R, H,
                  steps, h, mask, rows, first, out);
}

template <class T>
Error put_rows(Stream stream, Index R, Index H, const T* from, const Index* rows, Index first, T* dh) {
    return launch(put_rows_kernel<T>, blocks_for(R), threads_for(H, 4), 0, static_cast<cudaStream_t>(stream), R, H,
                  from, rows, first, dh);
}

template <class T>
Error clear_masked(Stream stream, Index R, Index H, Vec<unsigned char> mask, T* dh) {
    return launch(clear_masked_kernel<T>, blocks_for(R), threads_for(H, 4), 0, static_cast<cudaStream_t>(stream), R, H,
                  mask, dh);
}

template <class T>
Error column_sums(Stream stream, Index R, Index V, const T* a, bool add, T* sums) {
    return launch(column_sums_kernel<T>, dim3(static_cast<unsigned>(ceil_div(V, warp_size))),
                  dim3(column_groups * warp_size), column_groups * warp_size * sizeof(double),
                  static_cast<cudaStream_t>(stream), R, V, a, add, sums);
}

template Error temporal_softmax_loss<float>(Stream, Index, Index, Matrix<float>, Vec<Index>, Vec<unsigned char>, Index,
                                            double*, float*);
template Error temporal_softmax_loss<double>(Stream, Index, Index, Matrix<double>, Vec<Index>, Vec<unsigned char>,
                                             Index, double*, double*);
template Error softmax_chunk<float>(Stream, Index, Index, float*, Vec<float>, Vec<Index>, Vec<unsigned char>,
                                    const Index*, Index, Index, double*);
template Error softmax_chunk<double>(Stream, Index, Index, double*, Vec<double>, Vec<Index>, Vec<unsigned char>,
                                     const Index*, Index, Index, double*);
template Error total_loss<float>(Stream, Index, const double*, double, float*);
template Error total_loss<double>(Stream, Index, const double*, double, double*);
template Error take_rows<float>(Stream, Index, Index, Index, Cube<float>, Vec<unsigned char>, const Index*, Index,
                                float*);
template Error take_rows<double>(Stream, Index, Index, Index, Cube<double>, Vec<unsigned char>, const Index*, Index,
                                 double*);
template Error put_rows<float>(Stream, Index, Index, const float*, const Index*, Index, float*);
template Error put_rows<double>(Stream, Index, Index, const double*, const Index*, Index, double*);
template Error clear_masked<float>(Stream, Index, Index, Vec<unsigned char>, float*);
template Error clear_masked<double>(Stream, Index, Index, Vec<unsigned char>, double*);
template Error column_sums<float>(Stream, Index, Index, const float*, bool, float*);
template Error column_sums<double>(Stream, Index, Index, const double*, bool, double*);

}  // namespace fastrnn::cuda
