// How the time loop of a recurrent layer is cut over a device: plain C++, tested on the CPU.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "../kernels.h"

namespace fastrnn::cuda::recurrent {

constexpr int threads = 256, warps = threads / 32;
constexpr int counters_apart = 32;  // a line of 128 bytes for each barrier's counter

// What multiplies: FMA instructions, or tensor cores on float32 numbers in two parts each, on numbers rounded to TF32,
// to bfloat16, or to half. All sum in float32, and on double with FMA instructions in double.
enum class Engine { fma, split, tf32, bf16, fp16 };
FASTRNN_INLINE constexpr bool in_pairs(Engine engine) {
    return engine == Engine::bf16 || engine == Engine::fp16;
}

// What one pass of a block computes: rows x columns of S W, S the state (rows of k), W the recurrent weights. Warps
// share k: each has every eighth chunk, lanes within it `slices` parts of that. How k is shared depends on the sizes of
// the layer and on what multiplies, never on how much of it the device has, and so neither do the bits of the sums.
struct Tile {
    int word_bytes, k_of_word;  // a word of the state holds so many elements of k
    int slices;
    int columns, rows;
    int chunk;  // words of k
    // Rows in shared memory: of the state, of the weights of a k, of the sums; padded so that a warp's loads meet no
    // bank twice.
    int ld, ld_weights, ld_out;
    FASTRNN_INLINE constexpr int chunk_words() const { return chunk * ld_weights; }
};

constexpr Tile fma_tile(int word_bytes, int lanes_k, int columns, int rows) {
    const int chunk = lanes_k == 1 ? 16 : 32, ld = chunk + 4 * lanes_k;
    const int pad = lanes_k > 1 && columns % 32 == 0 ? 4 : 0;
    return {word_bytes, 1, lanes_k, columns, rows, chunk, ld, columns + pad, columns + 4};
}
// Tensor cores: 16 columns by 8 rows each, k of 8 words.
constexpr Tile mma_tile(int k_of_word, int columns, int rows) {
    return {4, k_of_word, 1, columns, rows, 32, 36, columns, columns + 4};
}

// By number, as recurrent.cuh instantiates them. Where few rows leave few sums a lane, several lanes share k. First
// those of float32, then of double, then of tensor cores: of each kind the second and third for units of several
// columns, the last three for units of one.
constexpr Tile tiles[] = {
    fma_tile(4, 2, 16, 8),  fma_tile(4, 2, 48, 8),  fma_tile(4, 2, 32, 16), fma_tile(4, 4, 16, 8),
    fma_tile(4, 4, 16, 16), fma_tile(4, 1, 16, 32), fma_tile(4, 1, 32, 32), fma_tile(4, 1, 32, 64),
    fma_tile(8, 2, 16, 8),  fma_tile(8, 4, 16, 8),  fma_tile(8, 1, 16, 32), mma_tile(1, 16, 8),
    mma_tile(1, 48, 8),     mma_tile(1, 32, 16),    mma_tile(1, 32, 32),    mma_tile(1, 32, 64),
    mma_tile(1, 16, 16),    mma_tile(1, 16, 32),    mma_tile(1, 16, 64),    mma_tile(2, 16, 8),
    mma_tile(2, 48, 8),     mma_tile(2, 32, 16),    mma_tile(2, 32, 32),    mma_tile(2, 32, 64),
    mma_tile(2, 16, 16),    mma_tile(2, 16, 32),    mma_tile(2, 16, 64),
};
constexpr int first_mma = 11, first_pairs = 19, mma_several = 5, mma_tiles = 8;

struct Limits {
    int sms;
    std::size_t shared;
    int major, minor;
};
Error current_limits(Limits& limits);  // of the current device

struct Plan {
    Engine engine;
    int tile;                     // of `tiles`; -1: nothing to run
    bool resident;                // the weights stay in shared memory, and all blocks run for the whole sequence
    int pass_units;               // hidden units of a pass
    int unit_passes, row_passes;  // of a block, in each step
    int unit_groups, row_groups;  // the grid
    int chunks, stages;           // of k; of each warp's ring of chunks in flight

    FASTRNN_INLINE constexpr Index resident_words(Tile t) const {
        return resident ? Index(unit_passes) * chunks * t.chunk_words() : 0;
    }
    FASTRNN_INLINE constexpr Index stage_words(Tile t) const {
        return t.rows * t.ld + (resident ? 0 : t.chunk_words());
    }
    FASTRNN_INLINE constexpr Index region_words(Tile t) const {
        const Index ring = stages * stage_words(t), sums = t.slices * t.rows * t.ld_out;
        return ring < sums ? sums : ring;
    }
    FASTRNN_INLINE constexpr std::size_t shared_bytes(Tile t) const {
        return static_cast<std::size_t>((resident_words(t) + warps * region_words(t)) * t.word_bytes);
    }
    FASTRNN_INLINE constexpr Index row_words(Tile t) const { return Index(chunks) * t.chunk; }
};

// What a launch needs beside its arguments, as offsets in bytes.
struct Scratch {
    Index state[2], weights, counters, bytes;

    constexpr Scratch(const Plan& plan, Tile t, Index N) : state{}, weights(0), counters(0), bytes(0) {
        const Index one = N * plan.row_words(t) * t.word_bytes;
        const Index passes = plan.resident ? 0 : Index(plan.unit_groups) * plan.unit_passes;
        take(one, state[0]);
        take(one, state[1]);
        take(passes * plan.chunks * t.chunk_words() * t.word_bytes, weights);
        take(Index(plan.row_groups) * counters_apart * 4, counters);
    }

  private:
    constexpr void take(Index size, Index& at) {
        at = bytes;
        bytes += (size + 127) / 128 * 128;
    }
};

// ---- the choice, by counting a step's clocks for each way of cutting ------------------------------------------------

constexpr Index up(Index a, Index b) {
    return (a + b - 1) / b;
}

// Multiply-adds a clock of an SM, from data sheets. Tensor cores: what mma.sync can be expected to reach, on Hopper
// some 0.6 of its peak.
inline double fma_rate(const Limits& d, int itemsize) {
    const bool data_center = d.minor == 0 && d.major >= 8 && d.major <= 10;
    if (itemsize == 8) return data_center ? (d.major == 8 ? 32 : 64) : 2;
    return d.major < 8 || (d.major == 8 && d.minor == 0) ? 64 : 128;
}
inline double tf32_rate(const Limits& d) {
    if (d.major < 8) return 0;
    if (d.minor == 0 && d.major <= 10) return d.major == 8 ? 512 : 600;
    return 128;
}
inline double rate(const Limits& d, Engine engine, int itemsize) {
    switch (engine) {
        case Engine::split:
            return tf32_rate(d) / 3;
        case Engine::tf32:
            return tf32_rate(d);
        case Engine::bf16:
            return tf32_rate(d) * 2;
        case Engine::fp16:
            return d.major < 8 ? 256 : tf32_rate(d) * 2;
        default:
            return fma_rate(d, itemsize);
    }
}

// Three products of parts are a float32 product but for 2^-22 of it. FMA instructions where they are not clearly
// slower, or where with few rows most of the time would go into taking numbers apart. Arrays of half precision have
// one engine, on every architecture that kernels are compiled for; the precision set is that of float32.
inline Engine choose_engine(const Limits& d, Index N, int itemsize, Precision precision) {
    if (itemsize == 2) return Engine::fp16;
    if (itemsize == 8 || d.major < 8) return Engine::fma;
    if (precision == Precision::high) return Engine::tf32;
    if (precision == Precision::medium) return Engine::bf16;
    return N > 16 && tf32_rate(d) / 3 > 1.2 * fma_rate(d, 4) ? Engine::split : Engine::fma;
}

inline bool allowed(int number, Engine engine, Index N, int columns, int itemsize) {
    const Tile& t = tiles[number];
    if (engine == Engine::fma)
        return number < first_mma && t.word_bytes == itemsize && t.slices == (N > 16 ? 1 : columns > 1 ? 2 : 4);
    const int kind = number - (in_pairs(engine) ? first_pairs : first_mma);
    if (kind < 0 || kind >= mma_tiles) return false;
    return kind == 0 || kind == 3 || kind == 4 || (columns > 1) == (kind < mma_several);
}

// The deepest ring that fits; false where none does.
inline bool fit(Plan& plan, const Tile& t, std::size_t shared) {
    for (int stages : {4, 2, 1}) {
        plan.stages = stages;
        if (plan.shared_bytes(t) <= shared) return true;
    }
    return false;
}

// Rough: what is compared are ways of cutting the same work. The L2 gives all SMs of an H100 about 5.5 TB/s, 24 bytes a
// clock to each; a pass costs its sums and gates, a launch of its own some 3 microseconds.
inline double clocks(const Plan& plan, const Tile& t, double fma_per_clock, Index N, int sms) {
    constexpr double l2_bytes_per_clock = 24, pass = 400, launch = 5000;
    const double K = static_cast<double>(up(plan.chunks, warps) * warps * t.chunk * t.k_of_word);
    const double rows = static_cast<double>(std::min<Index>(t.rows, N));
    const double waves = static_cast<double>(up(Index(plan.unit_groups) * plan.row_groups, sms));
    const double fma = K * t.columns * t.rows / fma_per_clock;
    const double l2 = (rows + (plan.resident ? 0 : t.columns)) * K * t.word_bytes / t.k_of_word / l2_bytes_per_clock;
    const double step = std::max(fma, l2) + std::min(fma, l2) / 4 + pass;
    return waves * plan.unit_passes * plan.row_passes * step * (plan.stages == 1 ? 1.3 : 1) +
           (plan.resident ? 0 : launch);
}

// The plan of a loop whose units have `columns` columns of W each, K deep.
inline Plan choose_plan(const Limits& device, Index N, Index H, int columns, Index K, int itemsize,
                        Precision precision) {
    Plan best{};
    best.tile = -1;
    best.engine = choose_engine(device, N, itemsize, precision);
    if (N == 0 || H == 0) return best;
    double least = 0;
    const auto consider = [&](Plan plan, const Tile& t) {
        if (!fit(plan, t, device.shared)) return;
        const double estimate = clocks(plan, t, rate(device, plan.engine, itemsize), N, device.sms);
        if (best.tile < 0 || estimate < least) best = plan, least = estimate;
    };
    for (int number = 0; number < static_cast<int>(std::size(tiles)); ++number) {
        if (!allowed(number, best.engine, N, columns, itemsize)) continue;
        const Tile& t = tiles[number];
        const Index most_units = t.columns / columns, row_tiles = up(N, t.rows);
        Plan plan{};
        plan.engine = best.engine;
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
        consider(plan, t);
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
