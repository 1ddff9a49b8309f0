// How the time loop of a recurrent layer is cut over a device: plain C++, tested on the CPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "../kernels.h"

namespace fastrnn::cuda::recurrent {

constexpr int threads = 256, warps = threads / 32;
constexpr int counters_apart = 32;  // a line of 128 bytes for each barrier's counter

// What one pass of a block computes: rows x columns of S W, S the state (rows of k), W the recurrent weights. Warps share
// k: each has every eighth chunk, lanes within it `slices` parts of that. How k is shared depends on the sizes of the
// layer alone, never on the device, and so neither do the bits of the sums.
struct Tile {
    int word_bytes, k_of_word;  // a word of the state holds so many elements of k
    int slices;
    int columns, rows;
    int chunk;  // words of k
    int ld, ld_weights, ld_out;  // rows in shared memory: of the state, of the weights of a k, of the sums; padded so
                                 // that a warp's loads meet no bank twice
    constexpr int chunk_words() const { return chunk * ld_weights; }
};

constexpr Tile ffma_tile(int word_bytes, int lanes_k, int columns, int rows) {
    const int chunk = lanes_k == 1 ? 16 : 32;
    return {word_bytes,       1,   lanes_k, columns, rows, chunk, chunk + 4 * lanes_k, columns + (lanes_k > 1 ? 4 : 0),
            columns + 4};
}

// By number, as recurrent.cuh instantiates them. Sums of several lanes along k where few rows leave few sums a lane.
constexpr Tile tiles[] = {
    ffma_tile(4, 2, 16, 8),  ffma_tile(4, 2, 48, 8),  ffma_tile(4, 2, 32, 16),                          // 0 to 2
    ffma_tile(4, 4, 16, 8),  ffma_tile(4, 4, 16, 16),                                                   // 3, 4
    ffma_tile(4, 1, 16, 32), ffma_tile(4, 1, 32, 32), ffma_tile(4, 1, 32, 64),                          // 5 to 7
    ffma_tile(8, 2, 16, 8),  ffma_tile(8, 4, 16, 8),  ffma_tile(8, 1, 16, 32),                          // 8 to 10
};

struct Limits {
    int sms;
    std::size_t shared;
    int major;
};
Error current_limits(Limits& limits);  // of the current device

struct Plan {
    int tile;         // of `tiles`; -1: nothing to run
    bool resident;    // the weights stay in shared memory, and all blocks run for the whole sequence
    int pass_units;   // hidden units of a pass
    int unit_passes, row_passes;  // of a block, in each step
    int unit_groups, row_groups;  // the grid
    int chunks, stages;           // of k; of each warp's ring of chunks in flight

    constexpr Index resident_words(const Tile& t) const {
        return resident ? Index(unit_passes) * chunks * t.chunk_words() : 0;
    }
    constexpr Index stage_words(const Tile& t) const { return t.rows * t.ld + (resident ? 0 : t.chunk_words()); }
    constexpr Index region_words(const Tile& t) const {
        const Index ring = stages * stage_words(t), sums = t.slices * t.rows * t.ld_out;
        return ring < sums ? sums : ring;
    }
    constexpr std::size_t shared_bytes(const Tile& t) const {
        return static_cast<std::size_t>((resident_words(t) + warps * region_words(t)) * t.word_bytes);
    }
    constexpr Index row_words(const Tile& t) const { return Index(chunks) * t.chunk; }
};

// What a launch needs beside its arguments, as offsets in bytes.
struct Scratch {
    Index state[2], weights, counters, bytes;

    constexpr Scratch(const Plan& plan, const Tile& t, Index N) : state{}, weights(0), counters(0), bytes(0) {
        const Index one = N * plan.row_words(t) * t.word_bytes;
        take(one, state[0]);
        take(one, state[1]);
        take(plan.resident ? 0 : Index(plan.unit_groups) * plan.unit_passes * plan.chunks * t.chunk_words() * t.word_bytes,
             weights);
        take(Index(plan.row_groups) * counters_apart * 4, counters);
    }

  private:
    constexpr void take(Index size, Index& at) {
        at = bytes;
        bytes += (size + 127) / 128 * 128;
    }
};

// ---- which tile, how many blocks, what stays in shared memory: by counting a step's clocks for each way of cutting ---

constexpr Index up(Index a, Index b) {
    return (a + b - 1) / b;
}

// Rough: what is compared are ways of cutting the same work. Clocks of an SM; the L2 gives all SMs of an H100 about
// 5.5 TB/s, 24 bytes a clock to each.
struct Cost {
    double fma_per_clock, l2_bytes_per_clock = 24, pass = 400, launch = 5000;
};

inline bool allowed(int number, Index N, int columns, int itemsize) {
    const Tile& t = tiles[number];
    if (t.word_bytes != itemsize) return false;
    return t.slices == (N > 16 ? 1 : columns > 1 ? 2 : 4);
}

// The deepest ring that fits; false where none does.
inline bool fit(Plan& plan, const Tile& t, std::size_t shared) {
    for (int stages : {4, 2, 1}) {
        plan.stages = stages;
        if (plan.shared_bytes(t) <= shared) return true;
    }
    return false;
}

inline double clocks(const Plan& plan, const Tile& t, const Cost& cost, Index N, int sms) {
    const double K = static_cast<double>(up(plan.chunks, warps) * warps * t.chunk * t.k_of_word);
    const double rows = static_cast<double>(std::min<Index>(t.rows, N));
    const double passes = plan.unit_passes * plan.row_passes;
    const double waves = static_cast<double>(up(Index(plan.unit_groups) * plan.row_groups, sms));
    const double fma = K * t.columns * t.rows / cost.fma_per_clock;
    const double weights = plan.resident ? 0 : t.columns;
    const double l2 = (rows + weights) * K * t.word_bytes / t.k_of_word / cost.l2_bytes_per_clock;
    const double step = std::max(fma, l2) + std::min(fma, l2) / 4 + cost.pass;
    return waves * passes * step * (plan.stages == 1 ? 1.3 : 1) + (plan.resident ? 0 : cost.launch);
}

// The plan of a loop whose units have `columns` columns of W each, K deep.
inline Plan choose_plan(const Limits& device, Index N, Index H, int columns, Index K, int itemsize, Precision) {
    Plan best{};
    best.tile = -1;
    if (N == 0 || H == 0) return best;
    double least = 0;
    const Cost cost{itemsize == 4 ? 128.0 : 64.0};
    const auto consider = [&](Plan plan, const Tile& t) {
        if (!fit(plan, t, device.shared)) return;
        const double estimate = clocks(plan, t, cost, N, device.sms);
        if (best.tile < 0 || estimate < least) best = plan, least = estimate;
    };
    for (int number = 0; number < static_cast<int>(std::size(tiles)); ++number) {
        if (!allowed(number, N, columns, itemsize)) continue;
        const Tile& t = tiles[number];
        const Index most_units = t.columns / columns, row_tiles = up(N, t.rows);
        Plan plan{};
        plan.tile = number;
        plan.chunks = static_cast<int>(up(K, t.chunk * t.k_of_word));
        plan.resident = true;
        for (Index groups = std::min<Index>(row_tiles, device.sms); groups >= 1; --groups) {
            plan.row_passes = static_cast<int>(up(row_tiles, groups));
            plan.row_groups = static_cast<int>(up(row_tiles, plan.row_passes));
            const Index units = up(H, device.sms / plan.row_groups);
            plan.unit_passes = static_cast<int>(up(units, most_units));
            plan.pass_units = static_cast<int>(up(units, plan.unit_passes));
            plan.unit_groups = static_cast<int>(up(H, Index(plan.unit_passes) * plan.pass_units));
            consider(plan, t);
        }
        plan.resident = false;
        plan.row_passes = plan.unit_passes = 1;
        plan.row_groups = static_cast<int>(row_tiles);
        plan.pass_units = static_cast<int>(std::min(most_units, H));
        plan.unit_groups = static_cast<int>(up(H, plan.pass_units));
        // Weights that fit are worth keeping whatever the estimate says: a launch a step costs the host as well.
        if (best.tile < 0 || !best.resident) consider(plan, t);
    }
    return best;
}

// Elements of the caller's dtype for the scratch of any precision, so that passes may differ in it.
inline Index scratch_elements(const Limits& device, Index N, Index H, int columns, Index K, int itemsize) {
    Index bytes = 0;
    for (Precision precision : {Precision::highest, Precision::high, Precision::medium}) {
        const Plan plan = choose_plan(device, N, H, columns, K, itemsize, precision);
        if (plan.tile >= 0) bytes = std::max(bytes, Scratch(plan, tiles[plan.tile], N).bytes);
    }
    return up(bytes, itemsize);
}

}  // namespace fastrnn::cuda::recurrent
