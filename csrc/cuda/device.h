// What the kernels of this folder are written in: CUDA, or the same source run on the host by host/simulator.h, where
// every kernel is held against the oracle without a GPU.
//
// A kernel keeps to what is here: no `__shared__` variables (one dynamic array, shared_memory), no spinning without
// pause(), no intrinsic that the simulator lacks.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(FASTRNN_CUDA_ON_HOST)
#include "host/simulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include "../kernels.h"
#include "half.h"

namespace fastrnn::cuda {

constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;

// ---- the device
// ------------------------------------------------------------------------------------------------------

// What plans depend on, of the current device.
struct Device {
    int sms;
    std::size_t shared;  // bytes that one block may have
    int major, minor;    // compute capability
};
cudaError_t current_device(Device& device);

// ---- launches
// --------------------------------------------------------------------------------------------------------

// Every launch returns its error; the bindings turn it into an exception (check.h).
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream, A&&... args);
// All blocks run at once, and may meet at a GridBarrier. An error where they do not fit the device.
template <class... P, class... A>
cudaError_t launch_together(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                            A&&... args);

#if !defined(FASTRNN_CUDA_ON_HOST)

template <class... P, class... A>
cudaError_t launch_with(bool together, void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared,
                        cudaStream_t stream, A&&... args) {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
    if (shared > 48 * 1024) {  // more than any kernel gets unasked
        const cudaError_t error =
            cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared));
        if (error != cudaSuccess) return error;
    }
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = together ? 1 : 0;
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream, A&&... args) {
    return launch_with(false, kernel, grid, block, shared, stream, static_cast<A&&>(args)...);
}
template <class... P, class... A>
cudaError_t launch_together(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream,
                            A&&... args) {
    return launch_with(true, kernel, grid, block, shared, stream, static_cast<A&&>(args)...);
}

// ---- inside of kernels
// -----------------------------------------------------------------------------------------------

// The block's dynamic shared memory, on a 128-byte line.
template <class T>
__device__ __forceinline__ T* shared_memory() {
    extern __shared__ __align__(128) unsigned char fastrnn_shared[];
    return reinterpret_cast<T*>(fastrnn_shared);
}

// For loops that wait for another block.
__device__ __forceinline__ void pause() {
    __nanosleep(20);
}

// Reads past the L1, which other blocks' writes do not reach.
template <class T>
__device__ __forceinline__ T load_shared_by_blocks(const T* p) {
    return __ldcg(p);
}

__device__ __forceinline__ unsigned load_acquire(const unsigned* p) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
    return value;
}
__device__ __forceinline__ void add_release(unsigned* p, unsigned n) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(n) : "memory");
}

// 16 bytes from global to shared memory, past the registers and the L1. Both addresses are multiples of 16. Where not
// `valid`, zeros, and nothing is read.
__device__ __forceinline__ void copy_async(void* to, const void* from, bool valid = true) {
#if __CUDA_ARCH__ >= 800
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
#else
    *static_cast<float4*>(to) = valid ? __ldcg(static_cast<const float4*>(from)) : float4{};
#endif
}
// Copies begun since the last call are one group; wait until at most `pending` of the thread's groups are under way.
__device__ __forceinline__ void copy_async_commit() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#endif
}

// ---- tensor cores
// ---------------------------------------------------------------------------------------------------- d += a b of one
// warp, d (16,8) in float32, fragments as the PTX manual lays them out. With g = lane / 4, q = lane % 4:
//   d: (g, 2q), (g, 2q + 1), (g + 8, 2q), (g + 8, 2q + 1)
//   TF32, k = 8:   a: (g, q), (g + 8, q), (g, q + 4), (g + 8, q + 4)   b: (q, g), (q + 4, g)
//   16-bit, k = 16, two neighbours along k in a register, the lower k in the lower half:
//                  a: (g, 2q..), (g + 8, 2q..), (g, 2q + 8..), (g + 8, 2q + 8..)   b: (2q.., g), (2q + 8.., g)
// Compute capability 8.0 at least, of halves 7.5; below, kernels are compiled but not chosen.

// Rounded to TF32's 10 bits of mantissa, to nearest, ties away from zero.
__device__ __forceinline__ std::uint32_t to_tf32(float x) {
#if __CUDA_ARCH__ >= 800
    std::uint32_t r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
    return r;
#else
    return __float_as_uint(x);
#endif
}
// Two floats rounded to bfloat16, nearest even, as one register.
__device__ __forceinline__ std::uint32_t pack_bf16(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    std::uint32_t r;
    memcpy(&r, &pair, sizeof r);
    return r;
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
__device__ __forceinline__ void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Below 8.0 in two products of k = 8, whose fragments are the halves of these.
__device__ __forceinline__ void mma_fp16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    for (int i = 0; i < 2; ++i)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[2 * i]), "r"(a[2 * i + 1]), "r"(b[i]));
#endif
}

// ---- halves ----

// Rounded to nearest, ties to even; from 65520 on to infinity.
__device__ __forceinline__ Half to_half(float x) {
    return {__half_as_ushort(__float2half_rn(x))};
}
__device__ __forceinline__ float widened(Half x) {
    return __half2float(__ushort_as_half(x.bits));
}

#endif  // !FASTRNN_CUDA_ON_HOST

// ---- for both
// --------------------------------------------------------------------------------------------------------

// Blocks of one launch_together meet. `arrived` is 0 before the launch; each meeting adds the number of blocks to it,
// so that no block need reset it: 2^32 / blocks meetings, thirty million for 132 blocks.
struct GridBarrier {
    unsigned* arrived;
    unsigned blocks;
    unsigned target = 0;

    // What the block wrote before is seen by every block after (by reads past the L1).
    __device__ __forceinline__ void wait() {
        arrive();
        meet();
    }
    // The two halves, between which a block may do what concerns no other.
    __device__ __forceinline__ void arrive() {
        target += blocks;
        __syncthreads();
        if (threadIdx.x == 0) {
            __threadfence();
            add_release(arrived, 1);
        }
    }
    __device__ __forceinline__ void meet() {
        if (threadIdx.x == 0)
            while (static_cast<int>(load_acquire(arrived) - target) < 0) pause();
        __syncthreads();
    }
};

// An element of an array as what is computed in, and the other way round.
__device__ __forceinline__ float widened(float x) {
    return x;
}
__device__ __forceinline__ double widened(double x) {
    return x;
}
template <class A>
__device__ __forceinline__ A rounded(Computed<A> x) {
    if constexpr (std::is_same_v<A, Half>)
        return to_half(x);
    else
        return x;
}

__host__ __device__ __forceinline__ constexpr Index ceil_div(Index a, Index b) {
    return (a + b - 1) / b;
}
template <class T>
__host__ __device__ __forceinline__ constexpr T least(T a, T b) {
    return a < b ? a : b;
}
template <class T>
__host__ __device__ __forceinline__ constexpr T most(T a, T b) {
    return a < b ? b : a;
}

// The sum over a warp, the same bits in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
    for (int other = warp_size / 2; other > 0; other /= 2) x += __shfl_xor_sync(all_lanes, x, other);
    return x;
}
template <class T>
__device__ __forceinline__ T warp_max(T x) {
    for (int other = warp_size / 2; other > 0; other /= 2) {
        const T y = __shfl_xor_sync(all_lanes, x, other);
        x = x < y || y != y ? y : x;  // a NaN stays
    }
    return x;
}

}  // namespace fastrnn::cuda
