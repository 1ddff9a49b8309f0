// Runs CUDA kernels on the host, for tests: each thread of a grid is a fiber, and they take turns at every point where
// CUDA threads can see each other (barriers, warp operations, waiting for another block).
//
// What it is to catch: wrong indices and tilings (run it under a sanitizer), missing barriers (the order in which
// threads take turns is shuffled by a seed: results must not depend on it), copies used before they were waited for
// (copy_async copies when it is waited for), shared memory read before it was written (it begins as NaN), blocks that
// wait for each other for ever. It says nothing about speed, and has no races of weak memory order.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>

#include "../half.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorCooperativeLaunchTooLarge = 720 };
using cudaStream_t = void*;

namespace fastrnn::cuda::host {

// Where the running thread is.
extern dim3 thread_index, block_index, block_size, grid_size;

// Runs `kernel` once for every thread of the grid. Blocks run one after another, or all at once if `together`.
cudaError_t run_grid(const std::function<void()>& kernel, dim3 grid, dim3 block, std::size_t shared, bool together);

void* shared_bytes();
void sync_block();
// All lanes of the mask arrive with 8 bytes each and leave with everybody's, by lane.
const std::uint64_t* exchange(unsigned mask, std::uint64_t mine);
void yield();
void copy_later(void* to, const void* from, bool valid);
void copy_commit();
void copy_wait(int pending);

// What the simulated device has, for tests: plans that fit and plans that do not; and the seed of the order in which
// threads take turns (0: in order).
struct Settings {
    int sms = 4;
    std::size_t shared = 232448;
    int major = 9, minor = 0;
    unsigned seed = 0;
};
Settings& settings();

template <class T>
std::uint64_t to_bits(T x) {
    static_assert(sizeof(T) <= 8);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof x);
    return bits;
}
template <class T>
T from_bits(std::uint64_t bits) {
    T x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
inline int lane() {
    return static_cast<int>((thread_index.x + block_size.x * (thread_index.y + block_size.y * thread_index.z)) % 32);
}

}  // namespace fastrnn::cuda::host

#define threadIdx (::fastrnn::cuda::host::thread_index)
#define blockIdx (::fastrnn::cuda::host::block_index)
#define blockDim (::fastrnn::cuda::host::block_size)
#define gridDim (::fastrnn::cuda::host::grid_size)

inline void __syncthreads() {
    fastrnn::cuda::host::sync_block();
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    fastrnn::cuda::host::exchange(mask, 0);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T>
T __shfl_sync(unsigned mask, T x, int from, int width = 32) {
    const int lane = fastrnn::cuda::host::lane();
    const auto* all = fastrnn::cuda::host::exchange(mask, fastrnn::cuda::host::to_bits(x));
    return fastrnn::cuda::host::from_bits<T>(all[lane / width * width + from % width]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int other) {
    const int lane = fastrnn::cuda::host::lane();
    const auto* all = fastrnn::cuda::host::exchange(mask, fastrnn::cuda::host::to_bits(x));
    return fastrnn::cuda::host::from_bits<T>(all[lane ^ other]);
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, int distance) {
    const int lane = fastrnn::cuda::host::lane();
    const auto* all = fastrnn::cuda::host::exchange(mask, fastrnn::cuda::host::to_bits(x));
    return lane < distance ? x : fastrnn::cuda::host::from_bits<T>(all[lane - distance]);
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, int distance) {
    const int lane = fastrnn::cuda::host::lane();
    const auto* all = fastrnn::cuda::host::exchange(mask, fastrnn::cuda::host::to_bits(x));
    return lane + distance > 31 ? x : fastrnn::cuda::host::from_bits<T>(all[lane + distance]);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const auto* all = fastrnn::cuda::host::exchange(mask, predicate != 0);
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1 && all[lane]) bits |= 1u << lane;
    return bits;
}
inline int __any_sync(unsigned mask, int predicate) {
    return __ballot_sync(mask, predicate) != 0;
}
inline int __popc(unsigned x) {
    return std::popcount(x);
}
inline int __clz(int x) {
    return std::countl_zero(static_cast<unsigned>(x));
}
inline int __ffs(int x) {
    return x ? std::countr_zero(static_cast<unsigned>(x)) + 1 : 0;
}
template <class T>
T __ldg(const T* p) {
    return *p;
}
template <class T>
T __ldcg(const T* p) {
    return *p;
}
template <class T>
T __ldcs(const T* p) {
    return *p;
}
template <class T>
void __stcg(T* p, T x) {
    *p = x;
}
template <class T>
void __stcs(T* p, T x) {
    *p = x;
}
template <class T>
T atomicAdd(T* p, T x) {
    const T old = *p;
    *p = old + x;
    return old;
}
template <class T>
T atomicMin(T* p, T x) {
    const T old = *p;
    *p = std::min(old, x);
    return old;
}
template <class T>
T atomicMax(T* p, T x) {
    const T old = *p;
    *p = std::max(old, x);
    return old;
}
inline unsigned __float_as_uint(float x) {
    return std::bit_cast<unsigned>(x);
}
inline float __uint_as_float(unsigned x) {
    return std::bit_cast<float>(x);
}

namespace fastrnn::cuda {

template <class T>
T* shared_memory() {
    return static_cast<T*>(host::shared_bytes());
}
inline void pause() {
    host::yield();
}
template <class T>
T load_shared_by_blocks(const T* p) {
    return *p;
}
inline unsigned load_acquire(const unsigned* p) {
    return *p;
}
inline void add_release(unsigned* p, unsigned n) {
    *p += n;
}
inline void copy_async(void* to, const void* from, bool valid = true) {
    host::copy_later(to, from, valid);
}
inline void copy_async_commit() {
    host::copy_commit();
}
template <int pending>
void copy_async_wait() {
    host::copy_wait(pending);
}

inline std::uint32_t to_tf32(float x) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
    return (bits + 0x1000u) & ~0x1fffu;
}
inline std::uint32_t bf16_bits(float x) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(x);
    if (x != x) return bits >> 16 | 0x40u;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
inline std::uint32_t pack_bf16(float low, float high) {
    return bf16_bits(low) | bf16_bits(high) << 16;
}
void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);
void mma_fp16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]);

inline Half to_half(float x) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(x), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    std::uint32_t half;
    if (size > 0x7f800000u)  // NaN
        half = 0x7e00u;
    else if (size >= 0x47800000u)  // 2^16
        half = 0x7c00u;
    else if (size >= 0x38800000u)  // 2^-14, the least that is not denormal; what rounds up to 2^16 becomes infinity
        half = (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13;
    else  // numbers from 0.5 to 1 are as far apart as denormal halves, and so the addition rounds
        half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(size) + 0.5f) - 0x3f000000u;
    return {static_cast<std::uint16_t>(sign | half)};
}
inline float widened(Half x) {
    const std::uint32_t sign = (x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
    if (rest >= 0x7c00u) return std::bit_cast<float>(sign | 0x7f800000u | rest << 13);
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(std::bit_cast<float>(rest << 13) * 0x1p112f));
}

template <class... P, class... A>
cudaError_t launch_with(bool together, void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, A&&... args) {
    const std::tuple<P...> parameters{static_cast<P>(args)...};
    return host::run_grid([&] { std::apply(kernel, parameters); }, grid, block, shared, together);
}
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t, A&&... args) {
    return launch_with(false, kernel, grid, block, shared, static_cast<A&&>(args)...);
}
template <class... P, class... A>
cudaError_t launch_together(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t,
                            A&&... args) {
    return launch_with(true, kernel, grid, block, shared, static_cast<A&&>(args)...);
}

}  // namespace fastrnn::cuda
