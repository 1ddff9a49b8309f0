// Kernels for tests of the CUDA simulator, right ones and ones that are wrong on purpose; tests/test_cuda_simulator.py
// compiles them, runs them by name, and reads what they print.
//
//   simulator_trials NAME SEED
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../csrc/cuda/device.h"

using namespace fastrnn;
using namespace fastrnn::cuda;

namespace {

constexpr int threads = 96;  // three warps

// Every thread gives its neighbour a number through shared memory.
template <bool with_barrier>
__global__ void neighbours(float* out) {
    float* given = shared_memory<float>();
    given[threadIdx.x] = static_cast<float>(threadIdx.x);
    if (with_barrier) __syncthreads();
    out[threadIdx.x] = given[(threadIdx.x + 1) % threads];
}

// A second round through the same memory; without the barrier between them it overtakes the first.
template <bool with_barrier>
__global__ void two_rounds(float* out) {
    float* given = shared_memory<float>();
    float sum = 0;
    for (int round = 0; round < 2; ++round) {
        given[threadIdx.x] = static_cast<float>(100 * round + threadIdx.x);
        __syncthreads();
        sum += given[(threadIdx.x + 40) % threads];
        if (with_barrier) __syncthreads();
    }
    out[threadIdx.x] = sum;
}

// A barrier that the last warp never reaches, because it waits at another.
__global__ void different_barriers(unsigned* flag) {
    if (threadIdx.x < 64) {
        __syncthreads();
    } else {
        __shfl_xor_sync(all_lanes, 0, 1);
        if (threadIdx.x == 64) {  // the rest of its warp does not come
            __shfl_xor_sync(all_lanes, 0, 1);
        } else {
            __syncthreads();
        }
    }
    *flag = 1;
}

// Threads that have returned are not waited for.
__global__ void early_return(float* out) {
    if (threadIdx.x >= 40) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

__global__ void lane_outside_of_mask(int* out) {
    out[threadIdx.x] = __shfl_sync(0xffffu, static_cast<int>(threadIdx.x), 0);
}

// 16 bytes a thread through shared memory; `waits` groups of copies may still be under way when they are read.
template <int pending>
__global__ void copies(const float* from, float* out) {
    float* to = shared_memory<float>() + 4 * threadIdx.x;
    for (int i = 0; i < 4; ++i) to[i] = -1;
    copy_async(to, from + 4 * threadIdx.x);
    copy_async_commit();
    copy_async_wait<pending>();
    for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = to[i];
}

// Two groups in flight; the older one has arrived when one may still be pending.
__global__ void older_group(const float* from, float* out) {
    float* to = shared_memory<float>() + 8 * threadIdx.x;
    for (int i = 0; i < 8; ++i) to[i] = -1;
    copy_async(to, from);
    copy_async_commit();
    copy_async(to + 4, from + 4);
    copy_async_commit();
    copy_async_wait<1>();
    for (int i = 0; i < 8; ++i) out[8 * threadIdx.x + i] = to[i];
}

__global__ void invalid_copy(float* out) {
    float* to = shared_memory<float>();
    copy_async(to, nullptr, false);
    copy_async_commit();
    copy_async_wait<0>();
    for (int i = 0; i < 4; ++i) out[i] = to[i];
}

__global__ void unaligned_copy(const float* from) {
    copy_async(shared_memory<float>(), from + 1);
}

// Shared memory that nobody wrote.
__global__ void unwritten(float* out) {
    out[threadIdx.x] = shared_memory<float>()[threadIdx.x];
}

__global__ void sums(float* out) {
    const float x = static_cast<float>(threadIdx.x);
    out[threadIdx.x] = warp_sum(x) + 10000 * warp_max(x);
}

__global__ void shuffles(int* out) {
    const int x = static_cast<int>(threadIdx.x);
    int* mine = out + 6 * threadIdx.x;
    mine[0] = __shfl_sync(all_lanes, x, 5);
    mine[1] = __shfl_sync(all_lanes, x, 3, 8);
    mine[2] = __shfl_up_sync(all_lanes, x, 2);
    mine[3] = __shfl_down_sync(all_lanes, x, 2);
    mine[4] = __shfl_xor_sync(all_lanes, x, 17);
    mine[5] = static_cast<int>(__ballot_sync(all_lanes, x % 3 == 0) & 0xffff);
}

// d (16,8) = a (16,k) b (k,8), read into fragments as device.h lays them out.
template <class Product, class Pack, int k>
__device__ void product(const float* a, const float* b, float* d, Product&& multiply, Pack&& pack) {
    const int lane = static_cast<int>(threadIdx.x), g = lane / 4, q = lane % 4;
    const int each = k == 16 ? 2 : 1, half = k / 2;  // numbers in a register
    std::uint32_t as[4], bs[2];
    for (int i = 0; i < 4; ++i) as[i] = pack(a + (g + i % 2 * 8) * k + each * q + i / 2 * half, 1);
    for (int i = 0; i < 2; ++i) bs[i] = pack(b + (each * q + i * half) * 8 + g, 8);
    float sum[4] = {0, 0, 0, 0};
    multiply(sum, as, bs);
    for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * q + i % 2] = sum[i];
}
__global__ void product_tf32(const float* a, const float* b, float* d) {
    const auto pack = [](const float* p, int) { return to_tf32(*p); };
    product<decltype(mma_tf32)&, decltype(pack)&, 8>(a, b, d, mma_tf32, pack);
}
__global__ void product_bf16(const float* a, const float* b, float* d) {
    const auto pack = [](const float* p, int next) { return pack_bf16(p[0], p[next]); };
    product<decltype(mma_bf16)&, decltype(pack)&, 16>(a, b, d, mma_bf16, pack);
}

__global__ void product_fp16(const float* a, const float* b, float* d) {
    const auto pack = [](const float* p, int next) {
        return static_cast<std::uint32_t>(to_half(p[0]).bits | to_half(p[next]).bits << 16);
    };
    product<decltype(mma_fp16)&, decltype(pack)&, 16>(a, b, d, mma_fp16, pack);
}

// Each block adds its number to a running sum; all see the sum of all after each meeting.
template <bool with_barrier>
__global__ void meetings(unsigned* arrived, float* slots, float* out, int rounds) {
    GridBarrier barrier{arrived, gridDim.x};
    float seen = 1;
    for (int round = 0; round < rounds; ++round) {
        if (threadIdx.x == 0) slots[round * gridDim.x + blockIdx.x] = seen * static_cast<float>(blockIdx.x + 1);
        if (with_barrier) barrier.wait();
        seen = 0;
        for (unsigned b = 0; b < gridDim.x; ++b) seen += load_shared_by_blocks(slots + round * gridDim.x + b);
    }
    if (threadIdx.x == 0) out[blockIdx.x] = seen;
}
// Of the blocks one goes without the others.
__global__ void meeting_without_one(unsigned* arrived) {
    GridBarrier barrier{arrived, gridDim.x};
    if (blockIdx.x == 0) return;
    barrier.wait();
}

// Numbers that products round to themselves in part only.
std::vector<float> numbers(int n, unsigned start) {
    std::vector<float> x(static_cast<std::size_t>(n));
    std::uint32_t state = start;
    for (float& v : x) {
        state = state * 1664525u + 1013904223u;
        v = static_cast<float>(state >> 8) / static_cast<float>(1 << 23) - 1;
    }
    return x;
}

template <class T>
void print(const char* name, const std::vector<T>& values) {
    std::printf("%s", name);
    for (T v : values) std::printf(" %.9g", static_cast<double>(v));
    std::printf("\n");
}

constexpr cudaStream_t stream = nullptr;

template <class... P>
std::vector<float> run(void (*kernel)(P...), int n, unsigned block, std::vector<float> from = {}) {
    alignas(16) static float in[4 * threads];
    std::copy(from.begin(), from.end(), in);
    std::vector<float> out(static_cast<std::size_t>(n), 7);
    cudaError_t error;
    if constexpr (sizeof...(P) == 2)
        error = launch(kernel, dim3(1), dim3(block), 1 << 14, stream, in, out.data());
    else
        error = launch(kernel, dim3(1), dim3(block), 1 << 14, stream, out.data());
    if (error != cudaSuccess) std::exit(3);
    return out;
}

int meet(bool with_barrier, unsigned blocks) {
    constexpr int rounds = 3;
    unsigned arrived = 0;
    std::vector<float> slots(rounds * blocks, 0), out(blocks, 0);
    const cudaError_t error = launch_together(with_barrier ? meetings<true> : meetings<false>, dim3(blocks), dim3(64),
                                              0, stream, &arrived, slots.data(), out.data(), rounds);
    std::printf("error %d\n", static_cast<int>(error));
    print("out", out);
    return 0;
}

template <class Kernel>
int multiply(Kernel kernel, int k) {
    const std::vector<float> a = numbers(16 * k, 1), b = numbers(8 * k, 2);
    std::vector<float> d(16 * 8, 7);
    if (launch(kernel, dim3(1), dim3(32), 0, stream, a.data(), b.data(), d.data()) != cudaSuccess) return 3;
    print("a", a);
    print("b", b);
    print("d", d);
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    const std::string name = argv[1];
    host::settings().seed = static_cast<unsigned>(std::atoi(argv[2]));
    const std::vector<float> from = numbers(4 * threads, 3);
    const auto is = [&](const char* other) { return name == other; };
    if (is("neighbours")) return print("out", run(neighbours<true>, threads, threads)), 0;
    if (is("neighbours without barrier")) return print("out", run(neighbours<false>, threads, threads)), 0;
    if (is("two rounds")) return print("out", run(two_rounds<true>, threads, threads)), 0;
    if (is("two rounds without barrier")) return print("out", run(two_rounds<false>, threads, threads)), 0;
    if (is("early return")) return print("out", run(early_return, threads, threads)), 0;
    if (is("copies waited for"))
        return print("from", from), print("out", run(copies<0>, 4 * threads, threads, from)), 0;
    if (is("copies not waited for")) return print("out", run(copies<1>, 4 * threads, threads, from)), 0;
    if (is("the older group")) return print("from", from), print("out", run(older_group, 8 * 32, 32, from)), 0;
    if (is("invalid copy")) return print("out", run(invalid_copy, 4, 1)), 0;
    if (is("unwritten")) return print("out", run(unwritten, threads, threads)), 0;
    if (is("sums")) return print("out", run(sums, threads, threads)), 0;
    if (is("meetings")) return meet(true, 4);
    if (is("meetings without barrier")) return meet(false, 4);
    if (is("more blocks than fit")) return meet(true, 5);
    if (is("tf32")) return multiply(product_tf32, 8);
    if (is("bf16")) return multiply(product_bf16, 16);
    if (is("fp16")) return multiply(product_fp16, 16);
    if (is("halves")) {
        std::vector<float> floats, halves;
        for (std::uint32_t i = 0; i < 1 << 16; ++i) {  // all halves, and floats of all exponents with odd bits below
            for (float x : {widened(Half{static_cast<std::uint16_t>(i)}),
                            __uint_as_float(i << 16 | (i * 40503 & 0xffff)), __uint_as_float(0x33000000u + i * 4096)})
                floats.push_back(x), halves.push_back(widened(to_half(x)));
        }
        return print("floats", floats), print("halves", halves), 0;
    }
    std::vector<int> ints(6 * 64, 7);
    if (is("shuffles")) {
        launch(shuffles, dim3(1), dim3(64), 0, stream, ints.data());
        return print("out", ints), 0;
    }
    unsigned word = 0;
    // These end the process.
    if (is("different barriers")) launch(different_barriers, dim3(1), dim3(threads), 0, stream, &word);
    if (is("a lane outside of the mask")) launch(lane_outside_of_mask, dim3(1), dim3(32), 0, stream, ints.data());
    if (is("unaligned copy")) {
        alignas(16) static float in[8];
        launch(unaligned_copy, dim3(1), dim3(1), 64, stream, in);
    }
    if (is("a meeting without one")) launch_together(meeting_without_one, dim3(3), dim3(32), 0, stream, &word);
    return 2;
}
