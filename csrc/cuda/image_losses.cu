// Losses of style transfer: content, style, total variation; at the speed of the memory.
//
// Sums are taken in double, one partial sum a chunk (or a plane), each by one block in an order of its own: the same
// bits on every run.
#include "device.h"

namespace fastrnn::cuda {

namespace {

constexpr int threads = 256;

// The sum of x over the block, in thread 0.
__device__ __forceinline__ double block_sum(double x) {
    double* sums = shared_memory<double>();  // one a warp
    x = warp_sum(x);
    if (threadIdx.x % warp_size == 0) sums[threadIdx.x / warp_size] = x;
    __syncthreads();
    double total = 0;
    if (threadIdx.x == 0)
        for (int i = 0; i < threads / warp_size; ++i) total += sums[i];
    return total;
}
constexpr std::size_t block_sum_bytes = threads / warp_size * sizeof(double);

template <class T>
__global__ void __launch_bounds__(threads) squared_distance_kernel(Index n, Vec<T> a, Vec<T> b, double* partial) {
    const Index first = blockIdx.x * sum_chunk, end = least(n, first + sum_chunk);
    double sum = 0;
    for (Index i = first + threadIdx.x; i < end; i += threads) {
        const double d = static_cast<double>(a(i)) - static_cast<double>(b(i));
        sum += d * d;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(threads) scaled_difference_kernel(Index n, Vec<T> a, Vec<T> b, T scale, T* out) {
    for (Index i = blockIdx.x * Index(threads) + threadIdx.x; i < n; i += Index(gridDim.x) * threads)
        out[i] = scale * (a(i) - b(i));
}

template <class T>
__global__ void __launch_bounds__(threads) tv_loss_kernel(Index H, Index W, Cube<T> img, double* partial) {
    double sum = 0;
    for (Index i = threadIdx.x; i < H * W; i += threads) {
        const Index row = i / W, column = i % W;
        const T* p = img.at(blockIdx.x, row) + column * img.s2;
        const double here = static_cast<double>(*p);
        if (row + 1 < H) {
            const double d = static_cast<double>(p[img.s1]) - here;
            sum += d * d;
        }
        if (column + 1 < W) {
            const double d = static_cast<double>(p[img.s2]) - here;
            sum += d * d;
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

template <class T>
__global__ void __launch_bounds__(threads)
    tv_loss_backward_kernel(Index P, Index H, Index W, Cube<T> img, T scale, T* dimg) {
    for (Index i = blockIdx.x * Index(threads) + threadIdx.x; i < P * H * W; i += Index(gridDim.x) * threads) {
        const Index column = i % W, row = i / W % H;
        const T* p = img.at(i / W / H, row) + column * img.s2;
        T sum = 0;
        if (row > 0) sum += *p - p[-img.s1];
        if (row + 1 < H) sum -= p[img.s1] - *p;
        if (column > 0) sum += *p - p[-img.s2];
        if (column + 1 < W) sum -= p[img.s2] - *p;
        dimg[i] = 2 * scale * sum;
    }
}

// Blocks of a kernel whose threads stride over n elements.
unsigned blocks_for(Index n) {
    return static_cast<unsigned>(least<Index>(ceil_div(n, threads), 1 << 16));
}

}  // namespace

template <class T>
Error squared_distance(Stream stream, Index n, Vec<T> a, Vec<T> b, double* partial) {
    return launch(squared_distance_kernel<T>, dim3(static_cast<unsigned>(ceil_div(n, sum_chunk))), dim3(threads),
                  block_sum_bytes, static_cast<cudaStream_t>(stream), n, a, b, partial);
}

template <class T>
Error scaled_difference(Stream stream, Index n, Vec<T> a, Vec<T> b, double scale, T* out) {
    return launch(scaled_difference_kernel<T>, dim3(blocks_for(n)), dim3(threads), 0, static_cast<cudaStream_t>(stream),
                  n, a, b, static_cast<T>(scale), out);
}

template <class T>
Error tv_loss(Stream stream, Index P, Index H, Index W, Cube<T> img, double* partial) {
    return launch(tv_loss_kernel<T>, dim3(static_cast<unsigned>(P)), dim3(threads), block_sum_bytes,
                  static_cast<cudaStream_t>(stream), H, W, img, partial);
}

template <class T>
Error tv_loss_backward(Stream stream, Index P, Index H, Index W, Cube<T> img, double scale, T* dimg) {
    return launch(tv_loss_backward_kernel<T>, dim3(blocks_for(P * H * W)), dim3(threads), 0,
                  static_cast<cudaStream_t>(stream), P, H, W, img, static_cast<T>(scale), dimg);
}

template Error squared_distance<float>(Stream, Index, Vec<float>, Vec<float>, double*);
template Error squared_distance<double>(Stream, Index, Vec<double>, Vec<double>, double*);
template Error scaled_difference<float>(Stream, Index, Vec<float>, Vec<float>, double, float*);
template Error scaled_difference<double>(Stream, Index, Vec<double>, Vec<double>, double, double*);
template Error tv_loss<float>(Stream, Index, Index, Index, Cube<float>, double*);
template Error tv_loss<double>(Stream, Index, Index, Index, Cube<double>, double*);
template Error tv_loss_backward<float>(Stream, Index, Index, Index, Cube<float>, double, float*);
template Error tv_loss_backward<double>(Stream, Index, Index, Index, Cube<double>, double, double*);

}  // namespace fastrnn::cuda
