// The fibers of host/simulator.h, on POSIX contexts.
#include "../device.h"

#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

namespace fastrnn::cuda {
namespace host {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr std::size_t stack_bytes = 64 << 10;

struct Copy {
    void* to;
    const void* from;
    bool valid;
};

struct Warp {
    std::uint64_t slots[2][32];
    unsigned arrived = 0;     // lanes
    unsigned generation = 0;  // of exchanges; its parity picks the slots, so that a lane may run one ahead
};

struct Block {
    std::vector<unsigned char> shared;
    unsigned char* shared_start = nullptr;
    std::vector<Warp> warps;
    unsigned arrived = 0, alive = 0, generation = 0;
};

struct Fiber {
    ucontext_t context;
    Block* block;
    dim3 block_index, thread_index;
    unsigned number;  // in its block
    bool done = false;
    bool paused = false;                  // it gave up its turn to wait for another block
    const unsigned* waits_for = nullptr;  // until this is no longer:
    unsigned value = 0;
    std::vector<std::vector<Copy>> groups;  // committed, the oldest first
    std::vector<Copy> open;
};

ucontext_t scheduler;
Fiber* current = nullptr;
const std::function<void()>* body = nullptr;

void leave() {
    swapcontext(&current->context, &scheduler);
}

void wait_while(const unsigned& counter, unsigned value) {
    current->waits_for = &counter;
    current->value = value;
    while (counter == value) leave();
    current->waits_for = nullptr;
}

void perform(const std::vector<Copy>& copies) {
    for (const Copy& c : copies) {
        if (c.valid)
            std::memcpy(c.to, c.from, 16);
        else
            std::memset(c.to, 0, 16);
    }
}

void release_block(Block& b) {
    b.arrived = 0;
    ++b.generation;
}

void enter() {
    (*body)();
    Block& b = *current->block;
    current->done = true;
    // Threads that have returned are no longer waited for.
    if (--b.alive && b.arrived == b.alive) release_block(b);
    leave();
}

[[noreturn]] void give_up(const char* why) {
    std::fprintf(stderr, "CUDA simulator: %s\n", why);
    std::abort();
}

// Stacks, kept from one grid to the next.
std::vector<std::unique_ptr<unsigned char[]>> stacks;

void prepare(Fiber& f, unsigned char* stack) {
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stack;
    f.context.uc_stack.ss_size = stack_bytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, enter, 0);
}

void run_blocks(const std::vector<dim3>& blocks, dim3 block, std::size_t shared, std::mt19937& random) {
    const unsigned threads = block.x * block.y * block.z;
    std::vector<Block> state(blocks.size());
    std::vector<Fiber> fibers(blocks.size() * threads);
    while (stacks.size() < fibers.size()) stacks.push_back(std::make_unique<unsigned char[]>(stack_bytes));
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        Block& b = state[i];
        b.shared.assign(shared + 128, 0xff);  // NaN, or -1
        const auto address = reinterpret_cast<std::uintptr_t>(b.shared.data());
        b.shared_start = b.shared.data() + (128 - address % 128) % 128;
        b.warps.resize((threads + 31) / 32);
        b.alive = threads;
        for (unsigned t = 0; t < threads; ++t) {
            Fiber& f = fibers[i * threads + t];
            f.block = &b;
            f.block_index = blocks[i];
            f.thread_index = dim3(t % block.x, t / block.x % block.y, t / block.x / block.y);
            f.number = t;
            prepare(f, stacks[i * threads + t].get());
        }
    }
    std::vector<std::size_t> order(fibers.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    // Blocks that wait for each other spin: rounds in which nobody does anything else.
    constexpr int most_idle_rounds = 1000;
    int idle_rounds = 0;
    for (std::size_t left = fibers.size(); left;) {
        if (settings().seed) std::shuffle(order.begin(), order.end(), random);
        bool moved = false, waited = false;
        for (std::size_t i : order) {
            Fiber& f = fibers[i];
            if (f.done || (f.waits_for && *f.waits_for == f.value)) continue;
            current = &f;
            block_index = f.block_index;
            thread_index = f.thread_index;
            f.paused = false;
            swapcontext(&scheduler, &f.context);
            left -= f.done;
            (f.paused ? waited : moved) = true;
        }
        idle_rounds = moved ? 0 : idle_rounds + 1;
        if (idle_rounds > (waited ? most_idle_rounds : 0))
            give_up("every thread waits for another: a barrier that some threads never reach");
    }
    current = nullptr;
}

}  // namespace

Settings& settings() {
    static Settings s;
    return s;
}

cudaError_t run_grid(const std::function<void()>& kernel, dim3 grid, dim3 block, std::size_t shared, bool together) {
    const std::size_t blocks = std::size_t(grid.x) * grid.y * grid.z;
    const unsigned threads = block.x * block.y * block.z;
    if (threads == 0 || threads > 1024 || shared > settings().shared) return cudaErrorInvalidConfiguration;
    if (together && blocks > static_cast<std::size_t>(settings().sms)) return cudaErrorCooperativeLaunchTooLarge;
    if (blocks == 0) return cudaSuccess;
    body = &kernel;
    block_size = block;
    grid_size = grid;
    std::mt19937 random(settings().seed);
    std::vector<dim3> all;
    for (std::size_t i = 0; i < blocks; ++i)
        all.emplace_back(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                         static_cast<unsigned>(i / grid.x / grid.y));
    if (settings().seed) std::shuffle(all.begin(), all.end(), random);
    if (together) {
        run_blocks(all, block, shared, random);
    } else {
        for (const dim3& b : all) run_blocks({b}, block, shared, random);
    }
    body = nullptr;
    return cudaSuccess;
}

void* shared_bytes() {
    return current->block->shared_start;
}

void sync_block() {
    Block& b = *current->block;
    const unsigned generation = b.generation;
    if (++b.arrived == b.alive)
        release_block(b);
    else
        wait_while(b.generation, generation);
}

const std::uint64_t* exchange(unsigned mask, std::uint64_t mine) {
    Warp& w = current->block->warps[current->number / 32];
    const unsigned lane = current->number % 32, generation = w.generation;
    if (!(mask >> lane & 1)) give_up("a lane outside of the mask takes part in a warp operation");
    // Lanes beyond the block's last thread are in nobody's mask, whatever it says.
    const unsigned threads = block_size.x * block_size.y * block_size.z, first = current->number - lane;
    const unsigned there = threads - first >= 32 ? 0xffffffffu : (1u << (threads - first)) - 1;
    auto& slots = w.slots[generation & 1];
    slots[lane] = mine;
    w.arrived |= 1u << lane;
    if (w.arrived == (mask & there)) {
        w.arrived = 0;
        ++w.generation;
    } else {
        wait_while(w.generation, generation);
    }
    return slots;
}

void yield() {
    current->paused = true;
    leave();
}

void copy_later(void* to, const void* from, bool valid) {
    if (reinterpret_cast<std::uintptr_t>(to) % 16 || (valid && reinterpret_cast<std::uintptr_t>(from) % 16))
        give_up("copy_async of an address that is no multiple of 16");
    current->open.push_back({to, from, valid});
}
void copy_commit() {
    current->groups.push_back(std::move(current->open));
    current->open.clear();
}
void copy_wait(int pending) {
    auto& groups = current->groups;
    while (groups.size() > static_cast<std::size_t>(pending)) {
        perform(groups.front());
        groups.erase(groups.begin());
    }
}

namespace {

// Everybody's four registers, two exchanges of 8 bytes.
template <int n>
void gather(const std::uint32_t (&mine)[n], std::uint32_t (&all)[32][n]) {
    for (int i = 0; i < n; i += 2) {
        const std::uint64_t* slots = exchange(all_lanes, mine[i] | std::uint64_t(mine[i + 1]) << 32);
        for (int lane = 0; lane < 32; ++lane) {
            all[lane][i] = static_cast<std::uint32_t>(slots[lane]);
            all[lane][i + 1] = static_cast<std::uint32_t>(slots[lane] >> 32);
        }
    }
}

// d (16,8) += a (16,k) b (k,8), whose elements are told by row and column; products are exact, sums in double, rounded
// once: a tensor core's own order is not documented, and tests hold it against a bound only.
template <int k, class A, class B>
void multiply(float (&d)[4], A&& a, B&& b) {
    const int g = lane() / 4, q = lane() % 4;
    for (int i = 0; i < 4; ++i) {
        const int row = g + i / 2 * 8, column = 2 * q + i % 2;
        double sum = d[i];
        for (int j = 0; j < k; ++j) sum += double(a(row, j)) * double(b(j, column));
        d[i] = static_cast<float>(sum);
    }
}

}  // namespace
}  // namespace host

void mma_tf32(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    std::uint32_t as[32][4], bs[32][2];
    host::gather(a, as);
    host::gather(b, bs);
    // The hardware does not look at the low bits.
    const auto number = [](std::uint32_t bits) { return std::bit_cast<float>(bits & ~0x1fffu); };
    host::multiply<8>(
        d, [&](int row, int k) { return number(as[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2]); },
        [&](int k, int column) { return number(bs[column * 4 + k % 4][k / 4]); });
}

namespace {

// Of numbers of 16 bits, two in a register; `number` tells what bits are.
template <class Number>
void multiply_pairs(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], Number&& number) {
    std::uint32_t as[32][4], bs[32][2];
    host::gather(a, as);
    host::gather(b, bs);
    const auto half = [&](std::uint32_t pair, int k) { return number((k % 2 ? pair >> 16 : pair) & 0xffffu); };
    host::multiply<16>(
        d, [&](int row, int k) { return half(as[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k); },
        [&](int k, int column) { return half(bs[column * 4 + k % 8 / 2][k / 8], k); });
}

}  // namespace

void mma_bf16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    multiply_pairs(d, a, b, [](std::uint32_t bits) { return std::bit_cast<float>(bits << 16); });
}

void mma_fp16(float (&d)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
    multiply_pairs(d, a, b, [](std::uint32_t bits) { return widened(Half{static_cast<std::uint16_t>(bits)}); });
}

cudaError_t current_device(Device& device) {
    const host::Settings& s = host::settings();
    device = {s.sms, s.shared, s.major, s.minor};
    return cudaSuccess;
}

}  // namespace fastrnn::cuda
