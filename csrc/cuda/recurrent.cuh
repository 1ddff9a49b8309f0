// The time loop of rnn, lstm and gru, forward and backward: what the three files instantiate with their cell.
//
// A step multiplies the state S (N, K) by the recurrent weights W (K, columns): forward S is h, K = H and a unit has a
// column a gate; backward S is da of the step before, K = gates H and a unit has one column, W being Wh^T. All else of
// the layer is large products before and after the loop (fastrnn/cuda/recurrent.py).
//
// A block owns some hidden units, and with them their columns, for some rows of the batch, for all steps. Its weights
// are packed into shared memory once. Each step its warps fetch the state, which is at most some MB and stays in the
// L2, in chunks of k through rings of their own; each warp sums its chunks over the whole tile, so that no warp waits
// for another before the eight partial sums meet in shared memory. Then a thread has all gates of a (row, unit),
// applies the cell, hands on the new state, and the blocks that share rows meet at a barrier in memory. What concerns
// no other block (reading pre-activations and gates, writing gates, h and states) is begun before that barrier and ends
// after it. Blocks of different rows never wait for each other. Rows whose sequence is over are computed and thrown
// away. Where the weights do not fit, or would make a block read the state more often than it would read them, the same
// kernel is launched once a step and fetches the weights, packed once a call, beside the state.
//
// Not run on a GPU: what follows is counted. LSTM, an H100 (132 SMs at 1.75 GHz; 128 FMA a clock and SM, mma.sync some
// 600 of TF32 and 1200 of bfloat16, a third of that of split float32; 5.5 TB/s from the L2), one step, forward and
// backward. MFLOP an SM, padding included; MB that all blocks read from the L2; microseconds of arithmetic and of the
// L2, of which the larger, a barrier (about 1) or launch (about 3), and some 0.4 for the sums and gates add up.
//
//   (N,T,D,H)                   forward          MFLOP    MB  math    L2  backward         MFLOP    MB  math    L2
//   (16,1024,768,768)  highest  persistent fma    0.59   3.1   1.3   0.6  persistent fma    0.79  12.6   1.8   2.3
//                      high     persistent        0.59   3.1   0.3   0.6  persistent        0.79  12.6   0.4   2.3
//                      medium   persistent        0.59   1.6   0.1   0.3  persistent        0.79   6.3   0.2   1.1
//   (32,256,512,512)   highest  persistent split  0.52   4.2   0.8   0.8  persistent split  0.52   8.4   0.8   1.5
//                      medium   persistent        0.52   2.1   0.1   0.4  persistent        0.52   4.2   0.1   0.8
//   (64,128,1024,1024) highest  persistent split   4.2  33.6   6.0   6.1  per step split     4.2 100.7   6.0  18.3
//                      medium   persistent         4.2  16.8   1.0   3.1  persistent         4.2  33.6   1.0   6.1
//   (100,16,256,200)   highest  persistent split  0.34   1.9   0.5   0.3  persistent split  0.41   6.1   0.6   1.1
//                      medium   persistent        0.39   1.1   0.1   0.2  persistent        0.43   3.2   0.1   0.6
//   (8,512,256,256)    highest  persistent fma    0.07   1.0   0.2   0.2  persistent fma    0.26   4.2   0.6   0.8
//                      medium   persistent        0.07   0.5   0.0   0.1  persistent        0.26   2.1   0.1   0.4
//   (128,64,512,1536)  highest  per step split    18.9 226.5  26.9  41.2  per step split    25.2 226.5  35.9  41.2
//                      medium   persistent        18.9  50.3   4.5   9.2  per step          25.2 113.2   6.0  20.6
//
// Arrays of half precision are cut as medium is, and take its time: what tensor cores multiply are halves then, two in
// a word. What stays from step to step (gates, h, c, their gradients) is float; an array's type is met only where an
// input is read and an output written.
//
// So at (16,1024,768,768), float32, about 2.7 microseconds a step forward and 3.7 backward; bfloat16 1.7 and 2.5. It is
// the L2 that bounds nearly all of it, since every block reads the state of its rows; rows are cut over blocks until
// that is balanced by the weights that more blocks then hold. Considered: units as the input of a step instead of its
// output (backward reads its own da alone, but the partial sums that blocks then exchange are as many as there are
// blocks); clusters that share the state through distributed shared memory, which would take most of the L2's part away
// on Hopper and later, and is the next thing to try where a GPU is at hand.
#pragma once

#include "device.h"
#include "recurrent_plan.h"

namespace fastrnn::cuda::recurrent {

// ---- numbers for gates.h --------------------------------------------------------------------------------------------

// A number whose functions gates.h finds by overload.
template <class T>
struct Number {
    T x;
    __device__ __forceinline__ friend Number operator+(Number a, Number b) { return {a.x + b.x}; }
    __device__ __forceinline__ friend Number operator-(Number a, Number b) { return {a.x - b.x}; }
    __device__ __forceinline__ friend Number operator*(Number a, Number b) { return {a.x * b.x}; }
};

// CUDA's own functions without fast-math: exp within 1 ulp, tanh within 2 (CUDA C++ Programming Guide, Mathematical
// Functions); the sigmoid so within 3. NaN stays NaN. Written for both signs, since exp(-x) overflows below -88.
__device__ __forceinline__ Number<float> sigmoid(Number<float> a) {
    const float e = expf(-fabsf(a.x));
    return {(a.x < 0 ? e : 1.0f) / (1.0f + e)};
}
__device__ __forceinline__ Number<double> sigmoid(Number<double> a) {
    const double e = exp(-fabs(a.x));
    return {(a.x < 0 ? e : 1.0) / (1.0 + e)};
}
__device__ __forceinline__ Number<float> tanh(Number<float> a) {
    return {tanhf(a.x)};
}
__device__ __forceinline__ Number<double> tanh(Number<double> a) {
    return {::tanh(a.x)};
}

// ---- products of one step -------------------------------------------------------------------------------------------

__device__ __forceinline__ void load4(const float* p, float (&v)[4]) {
    const float4 x = *reinterpret_cast<const float4*>(p);
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
}
__device__ __forceinline__ void load4(const double* p, double (&v)[4]) {
    const double2 x = *reinterpret_cast<const double2*>(p), y = *reinterpret_cast<const double2*>(p + 2);
    v[0] = x.x, v[1] = x.y, v[2] = y.x, v[3] = y.y;
}
__device__ __forceinline__ void store4(float* p, const float* v) {
    *reinterpret_cast<float4*>(p) = float4{v[0], v[1], v[2], v[3]};
}
__device__ __forceinline__ void store4(double* p, const double* v) {
    *reinterpret_cast<double2*>(p) = double2{v[0], v[1]};
    *reinterpret_cast<double2*>(p + 2) = double2{v[2], v[3]};
}

// A tile is what a warp computes of S W for its slice of k: see Tile in recurrent_plan.h. Here with FMA instructions: a
// lane sums tile_rows x tile_columns numbers, `lanes_k` lanes share each of them and take turns along k.
template <class T, int lanes_k_, int tile_columns, int tile_rows>
struct Ffma {
    using Out = T;
    using Word = T;
    static constexpr int lanes_k = lanes_k_, lanes_c = 4, lanes_r = warp_size / lanes_k / lanes_c;
    static constexpr Tile tile = fma_tile(sizeof(T), lanes_k, lanes_c* tile_columns, lanes_r* tile_rows);
    static_assert(tile_columns % 4 == 0);

    // Chains of at most 64 additions, as on the CPU (k_slice in csrc/cpu/inner_loops.h): one chain over all of k would
    // lose what the tolerance rule allows.
    static constexpr int chunks_in_chain = 64 * lanes_k / tile.chunk;

    T chain[tile_rows][tile_columns], sum[tile_rows][tile_columns];

    // Lanes of columns and rows are mixed so that the four quarters of a warp, in which 16-byte loads are served, read
    // whole lines of shared memory (maxas' SGEMM: https://github.com/NervanaSystems/maxas/wiki/SGEMM).
    static __device__ __forceinline__ int lane_c(int lane) {
        return lanes_k == 1 ? (lane & 1) | (lane >> 3 & 2) : lane & 3;
    }
    static __device__ __forceinline__ int lane_r(int lane) {
        return lanes_k == 1 ? lane >> 1 & 7 : lane >> 2 & (lanes_r - 1);
    }
    static __device__ __forceinline__ int lane_k(int lane) { return lanes_k == 1 ? 0 : lane / (lanes_c * lanes_r); }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < tile_rows; ++i)
#pragma unroll
            for (int j = 0; j < tile_columns; ++j) chain[i][j] = sum[i][j] = T(0);
    }
    __device__ __forceinline__ void end_chain() {
#pragma unroll
        for (int i = 0; i < tile_rows; ++i)
#pragma unroll
            for (int j = 0; j < tile_columns; ++j) sum[i][j] += chain[i][j], chain[i][j] = T(0);
    }
    // Lanes of neighbouring k read rows of weights 4 apart, which would meet in the same banks where a row has 16
    // numbers more than a multiple of 32: every second four, odd and even rows change places. (Other rows are padded.)
    static constexpr bool swaps = lanes_k > 1 && tile.columns % 32 != 0;
    static __device__ __forceinline__ int place(int k) { return swaps ? k ^ (k >> 2 & 1) : k; }

    // One chunk of k: s (rows, ld) of the state, w (chunk, ld_weights).
    __device__ __forceinline__ void multiply(const Word* s, const Word* w, int lane) {
        s += lane_r(lane) * tile.ld + 4 * lane_k(lane);
        w += 4 * lane_k(lane) * tile.ld_weights + 4 * lane_c(lane);
        const int swapped = swaps ? (lane_k(lane) & 1) * tile.ld_weights : 0;
#pragma unroll 2
        for (int k = 0; k < tile.chunk; k += 4 * lanes_k) {
            T a[tile_rows][4];
#pragma unroll
            for (int i = 0; i < tile_rows; ++i) load4(s + i * lanes_r * tile.ld + k, a[i]);
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                T b[tile_columns / 4][4];
#pragma unroll
                for (int c = 0; c < tile_columns / 4; ++c)
                    load4(w + (k + j) * tile.ld_weights + (j % 2 ? -swapped : swapped) + c * 4 * lanes_c, b[c]);
#pragma unroll
                for (int i = 0; i < tile_rows; ++i)
#pragma unroll
                    for (int c = 0; c < tile_columns; ++c) chain[i][c] += a[i][j] * b[c / 4][c % 4];
            }
        }
    }
    // The lane's sums to partial (lanes_k, rows, ld_out).
    __device__ __forceinline__ void put(T* partial, int lane) const {
        partial += (lane_k(lane) * tile.rows + lane_r(lane)) * tile.ld_out + 4 * lane_c(lane);
#pragma unroll
        for (int i = 0; i < tile_rows; ++i)
#pragma unroll
            for (int c = 0; c < tile_columns / 4; ++c)
                store4(partial + i * lanes_r * tile.ld_out + c * 4 * lanes_c, &sum[i][4 * c]);
    }

    // Where element k of a row of the state, and weight (k, column) of a chunk, lie; and how they are written.
    static __device__ __forceinline__ void put_state(Word* row, Index k, T value) { row[k] = value; }
    static __device__ __forceinline__ void put_weight(Word* chunk, int k, int column, T value) {
        chunk[place(k) * tile.ld_weights + column] = value;
    }
};

// With tensor cores: columns on the 16 of a product, rows on its 8. Weights lie as the fragments that a lane loads.
template <Engine engine, int column_tiles, int row_tiles>
struct Mma {
    using Out = float;
    using Word = std::uint32_t;
    static constexpr bool split = engine == Engine::split;
    static constexpr Tile tile = mma_tile(in_pairs(engine) ? 2 : 1, 16 * column_tiles, 8 * row_tiles);
    static constexpr int chunks_in_chain = 4;

    // Tensor cores cut off what they add where an FMA rounds. Of split numbers, so, only the products of one k of 8 are
    // added there, the small ones first, and all else by additions (Ootomo and Yokota, "Recovering single precision
    // accuracy from Tensor Cores while surpassing the FP32 theoretical peak performance", 2022).
    float chain[split ? 1 : column_tiles][split ? 1 : row_tiles][4], sum[column_tiles][row_tiles][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int c = 0; c < column_tiles; ++c)
#pragma unroll
            for (int r = 0; r < row_tiles; ++r)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    sum[c][r][i] = 0;
                    if constexpr (!split) chain[c][r][i] = 0;
                }
    }
    __device__ __forceinline__ void end_chain() {
        if constexpr (!split) {
#pragma unroll
            for (int c = 0; c < column_tiles; ++c)
#pragma unroll
                for (int r = 0; r < row_tiles; ++r)
#pragma unroll
                    for (int i = 0; i < 4; ++i) sum[c][r][i] += chain[c][r][i], chain[c][r][i] = 0;
        }
    }
    // x = high + low but for 2^-22 of it, both TF32. What is not finite is all in high, and meets no low part: infinity
    // times a part's sign would make NaN of what is infinite.
    static __device__ __forceinline__ void take_apart(std::uint32_t word, std::uint32_t& high, std::uint32_t& low,
                                                      std::uint32_t& finite) {
        const float x = __uint_as_float(word);
        high = to_tf32(x);
        const float rounded = __uint_as_float(high);
        const bool ordinary = fabsf(rounded) <= 3.4028235e38f;
        low = ordinary ? to_tf32(x - rounded) : 0u;
        finite = ordinary ? high : 0u;
    }
    __device__ __forceinline__ void multiply(const Word* s, const Word* w, int lane) {
        s += lane / 4 * tile.ld + lane % 4;
        w += 4 * lane;
#pragma unroll(split ? 1 : 4)  // of split numbers there is enough to do in one, and not enough registers for more
        for (int k = 0; k < tile.chunk / 8; ++k) {
            std::uint32_t a[column_tiles][4], low_a[column_tiles][4], finite_a[column_tiles][4];
#pragma unroll
            for (int c = 0; c < column_tiles; ++c) {
                const uint4 x = *reinterpret_cast<const uint4*>(w + (k * column_tiles + c) * 4 * warp_size);
                const std::uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if constexpr (split)
                        take_apart(words[i], a[c][i], low_a[c][i], finite_a[c][i]);
                    else
                        a[c][i] = words[i];
            }
#pragma unroll
            for (int r = 0; r < row_tiles; ++r) {
                std::uint32_t b[2], low_b[2], finite_b[2];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const std::uint32_t word = s[r * 8 * tile.ld + k * 8 + 4 * i];
                    if constexpr (split)
                        take_apart(word, b[i], low_b[i], finite_b[i]);
                    else
                        b[i] = word;
                }
#pragma unroll
                for (int c = 0; c < column_tiles; ++c) {
                    if constexpr (engine == Engine::split) {
                        float d[4] = {0, 0, 0, 0};
                        mma_tf32(d, low_a[c], finite_b);
                        mma_tf32(d, finite_a[c], low_b);
                        mma_tf32(d, a[c], b);
#pragma unroll
                        for (int i = 0; i < 4; ++i) sum[c][r][i] += d[i];
                    } else if constexpr (engine == Engine::tf32) {
                        mma_tf32(chain[c][r], a[c], b);
                    } else if constexpr (engine == Engine::bf16) {
                        mma_bf16(chain[c][r], a[c], b);
                    } else {
                        mma_fp16(chain[c][r], a[c], b);
                    }
                }
            }
        }
    }
    __device__ __forceinline__ void put(float* partial, int lane) const {
        partial += lane % 4 * 2 * tile.ld_out + lane / 4;
#pragma unroll
        for (int c = 0; c < column_tiles; ++c)
#pragma unroll
            for (int r = 0; r < row_tiles; ++r)
#pragma unroll
                for (int i = 0; i < 4; ++i) partial[(r * 8 + i % 2) * tile.ld_out + c * 16 + i / 2 * 8] = sum[c][r][i];
    }

    // Element k of an array of words.
    static __device__ __forceinline__ void put_at(Word* words, Index k, float value) {
        if constexpr (engine == Engine::bf16)
            reinterpret_cast<unsigned short*>(words)[k] = static_cast<unsigned short>(pack_bf16(value, 0));
        else if constexpr (engine == Engine::fp16)
            reinterpret_cast<unsigned short*>(words)[k] = to_half(value).bits;
        else
            words[k] = split ? __float_as_uint(value) : to_tf32(value);
    }
    static __device__ __forceinline__ void put_state(Word* row, Index k, float value) { put_at(row, k, value); }
    static __device__ __forceinline__ void put_weight(Word* chunk, int k, int column, float value) {
        const int word = k / tile.k_of_word, c = column % 16;
        const int lane = c % 8 * 4 + word % 4, part = c / 8 + word % 8 / 4 * 2;
        put_at(chunk + ((word / 8 * column_tiles + column / 16) * warp_size + lane) * 4 + part, k % tile.k_of_word,
               value);
    }
};

// ---- the time loop --------------------------------------------------------------------------------------------------

// What every kernel of a call is told. The state is what is multiplied by the recurrent weights: h forward, da
// backward; (N, k of the chunks), 0 beyond K, two of them by the parity of the step.
template <class Word>
struct Cut {
    Plan plan;
    Index N, H;
    Word* state[2];       // rows of plan.row_words
    const Word* weights;  // packed for all unit passes, where they do not stay in shared memory
    unsigned* arrived;    // one counter a group of rows, counters_apart apart; null: a launch a step, no barrier
};

// A pass is a tile of rows by a few units. A task knows the cell: what a unit of a row needs (load), what becomes of it
// (finish), what the next step needs of that (pass_on) and what nobody waits for (store).
template <class E, class Task>
__global__ void __launch_bounds__(threads, 1) time_loop(Task task, Cut<typename E::Word> cut, Index first, Index end) {
    using T = typename E::Out;
    using Word = typename E::Word;
    constexpr Tile tile = E::tile;
    constexpr int columns = Task::columns;
    constexpr int ahead = tile.rows * tile.columns < 2048 ? 2 : 1;  // pairs of a thread whose inputs are read early
    const Plan& plan = cut.plan;
    const int thread = static_cast<int>(threadIdx.x), warp = thread / warp_size, lane = thread % warp_size;
    Word* const resident = shared_memory<Word>();
    Word* const regions = resident + plan.resident_words(tile);
    const Index region_words = plan.region_words(tile);
    Word* const region = regions + warp * region_words;
    const Index stage_words = plan.stage_words(tile), row_words = plan.row_words(tile);
    const Index first_unit = Index(blockIdx.x) * plan.unit_passes * plan.pass_units;
    const Index first_row = Index(blockIdx.y) * plan.row_passes * tile.rows;

    if (plan.resident)
        for (int pass = 0; pass < plan.unit_passes; ++pass)
            pack<E>(task, plan, cut.H, first_unit + pass * plan.pass_units, thread,
                    resident + Index(pass) * plan.chunks * tile.chunk_words());
    GridBarrier barrier{cut.arrived + blockIdx.y * counters_apart, static_cast<unsigned>(plan.unit_groups)};
    __syncthreads();

    const int pairs = tile.rows * plan.pass_units;
    const auto row_of = [&](int pair) { return pair / plan.pass_units; };

    for (Index step = first; step < end; ++step) {
        // Picked, not indexed: an array that is indexed is copied to local memory.
        const Word* const before = step & 1 ? cut.state[1] : cut.state[0];
        Word* const after = step & 1 ? cut.state[0] : cut.state[1];
        for (int pass = 0; pass < plan.unit_passes * plan.row_passes; ++pass) {
            const int unit_pass = pass / plan.row_passes;
            const Index unit0 = first_unit + unit_pass * plan.pass_units;
            const Index row0 = first_row + Index(pass % plan.row_passes) * tile.rows;
            const bool last = pass + 1 == plan.unit_passes * plan.row_passes;
            const auto exists = [&](int pair) {
                return pair < pairs && row0 + row_of(pair) < cut.N && unit0 + pair % plan.pass_units < cut.H;
            };

            // What concerns no other block is begun before the blocks meet.
            typename Task::Inputs inputs[ahead]{};
            typename Task::Outputs outputs[ahead]{};
#pragma unroll
            for (int i = 0; i < ahead; ++i) {
                const int pair = thread + i * threads;
                if (exists(pair)) inputs[i] = task.load(step, row0 + row_of(pair), unit0 + pair % plan.pass_units);
            }
            if (cut.arrived && pass == 0 && step > first) barrier.meet();

            // Each warp has every eighth chunk of k, in stages of its own: no other warp is waited for. The ring's
            // first rounds only fetch.
            E sums;
            sums.clear();
            if (task.multiplies(step)) {
                const Word* const rows = before + row0 * row_words;
                const Index rows_left = cut.N - row0;
                const Word* const kept = resident + Index(unit_pass) * plan.chunks * tile.chunk_words();
                const Word* const streamed =
                    cut.weights + (Index(blockIdx.x) * plan.unit_passes + unit_pass) * plan.chunks * tile.chunk_words();
                int stage = 0, in_chain = 0;
                for (int chunk = warp - plan.stages * warps; chunk < plan.chunks; chunk += warps) {
                    Word* const ring = region + stage * stage_words;
                    if (chunk >= 0) {
                        if (plan.stages == 4)
                            copy_async_wait<3>();
                        else if (plan.stages == 2)
                            copy_async_wait<1>();
                        else
                            copy_async_wait<0>();
                        __syncwarp();
                        sums.multiply(
                            ring, plan.resident ? kept + Index(chunk) * tile.chunk_words() : ring + tile.rows * tile.ld,
                            lane);
                        if (++in_chain == E::chunks_in_chain) sums.end_chain(), in_chain = 0;
                        __syncwarp();
                    }
                    const int next = chunk + plan.stages * warps;
                    if (next < plan.chunks) {
                        constexpr int words = 16 / static_cast<int>(sizeof(Word)), pieces = tile.chunk / words;
                        for (int i = lane; i < tile.rows * pieces; i += warp_size) {
                            const int r = i / pieces, k = i % pieces * words;
                            const bool valid = r < rows_left;
                            copy_async(ring + r * tile.ld + k,
                                       rows + (valid ? r : 0) * row_words + Index(next) * tile.chunk + k, valid);
                        }
                        if (!plan.resident)
                            for (int i = lane * words; i < tile.chunk_words(); i += warp_size * words)
                                copy_async(ring + tile.rows * tile.ld + i,
                                           streamed + Index(next) * tile.chunk_words() + i);
                    }
                    copy_async_commit();
                    stage = stage + 1 == plan.stages ? 0 : stage + 1;
                }
                sums.end_chain();
                copy_async_wait<0>();
                __syncwarp();
            }

            // The sums of all warps, in the order of their slices; region 0 takes the total, place by place.
            T* const partial = reinterpret_cast<T*>(regions);
            static_assert(sizeof(T) == sizeof(Word));
            const Index apart = region_words;
            sums.put(partial + warp * apart, lane);
            __syncthreads();
            for (int i = thread; i < tile.rows * tile.columns; i += threads) {
                const int at = i / tile.columns * tile.ld_out + i % tile.columns;
                T total = T(0);
#pragma unroll
                for (int w = 0; w < warps; ++w)
#pragma unroll
                    for (int k = 0; k < tile.slices; ++k)
                        total += partial[w * apart + k * tile.rows * tile.ld_out + at];
                partial[at] = total;
            }
            __syncthreads();

            const auto finish = [&](int pair, const typename Task::Inputs& in) {
                const int r = row_of(pair), u = pair % plan.pass_units;
                T total[columns];
#pragma unroll
                for (int c = 0; c < columns; ++c) total[c] = partial[r * tile.ld_out + u * columns + c];
                const auto out = task.finish(in, total);
                task.template pass_on<E>(after + (row0 + r) * row_words, out, unit0 + u);
                return out;
            };
#pragma unroll
            for (int i = 0; i < ahead; ++i)
                if (exists(thread + i * threads)) outputs[i] = finish(thread + i * threads, inputs[i]);
            for (int pair = thread + ahead * threads; pair < pairs; pair += threads)
                if (exists(pair)) {
                    const Index row = row0 + row_of(pair), unit = unit0 + pair % plan.pass_units;
                    const auto in = task.load(step, row, unit);
                    task.store(step, row, unit, in, finish(pair, in));
                }
            if (cut.arrived && last && step + 1 < end)
                barrier.arrive();
            else
                __syncthreads();  // the regions are free again
#pragma unroll
            for (int i = 0; i < ahead; ++i) {
                const int pair = thread + i * threads;
                if (exists(pair))
                    task.store(step, row0 + row_of(pair), unit0 + pair % plan.pass_units, inputs[i], outputs[i]);
            }
        }
    }
}

// The weights of one pass as the tile's chunks, zeros where there is no k or unit.
template <class E, class Task>
__device__ __forceinline__ void pack(const Task& task, const Plan& plan, Index H, Index unit0, int thread,
                                     typename E::Word* to) {
    constexpr Tile tile = E::tile;
    constexpr int chunk_k = tile.chunk * tile.k_of_word;
    const Index K = task.depth();
    const int all_k = plan.chunks * chunk_k;
    for (int i = thread; i < all_k * tile.columns; i += threads) {
        // Neighbouring threads take neighbouring elements of Wh.
        const int k = Task::along_k ? i % all_k : i / tile.columns;
        const int column = Task::along_k ? i / all_k : i % tile.columns;
        const int unit = column / Task::columns;
        const bool valid = k < K && unit < plan.pass_units && unit0 + unit < H;
        E::put_weight(to + Index(k / chunk_k) * tile.chunk_words(), k % chunk_k, column,
                      valid ? task.weight(k, unit0 + unit, column % Task::columns) : typename E::Out(0));
    }
}
template <class E, class Task>
__global__ void __launch_bounds__(threads) pack_weights(Task task, Plan plan, Index H, typename E::Word* to) {
    pack<E>(task, plan, H, Index(blockIdx.x) * plan.pass_units, static_cast<int>(threadIdx.x),
            to + Index(blockIdx.x) * plan.chunks * E::tile.chunk_words());
}

// Both states, the barriers' counters, and what the task keeps from step to step.
template <class E, class Task>
__global__ void __launch_bounds__(threads)
    prepare(Task task, Index N, Index H, Index rows, Index padded_k, typename E::Word* state0, typename E::Word* state1,
            unsigned* arrived, int counters) {
    using T = typename E::Out;
    const Index thread = Index(blockIdx.x) * threads + threadIdx.x, all = Index(gridDim.x) * threads;
    const Index K = task.depth();
    for (Index i = thread; i < rows * padded_k; i += all) {
        const Index row = i / padded_k, k = i % padded_k;
        E::put_state(state0 + row * (padded_k / E::tile.k_of_word), k, row < N && k < K ? task.initial(row, k) : T(0));
        E::put_state(state1 + row * (padded_k / E::tile.k_of_word), k, T(0));
    }
    for (Index i = thread; i < N * H; i += all) task.begin(i / H, i % H);
    for (Index i = thread; i < counters; i += all) arrived[i] = 0;
}

// ---- launches -------------------------------------------------------------------------------------------------------

template <class E, class Task>
cudaError_t run(cudaStream_t stream, const Task& task, const Plan& plan, Index N, Index H, Index steps,
                unsigned char* scratch) {
    using Word = typename E::Word;
    const Scratch parts(plan, E::tile, N);
    Cut<Word> cut{
        plan,
        N,
        H,
        {reinterpret_cast<Word*>(scratch + parts.state[0]), reinterpret_cast<Word*>(scratch + parts.state[1])},
        reinterpret_cast<const Word*>(scratch + parts.weights),
        reinterpret_cast<unsigned*>(scratch + parts.counters)};
    const Index rows = N, padded_k = plan.row_words(E::tile) * E::tile.k_of_word;
    const Index work = most(rows * padded_k, N * H);
    cudaError_t error = launch(
        prepare<E, Task>, dim3(static_cast<unsigned>(least<Index>(ceil_div(work, threads), 1024))), dim3(threads), 0,
        stream, task, N, H, rows, padded_k, cut.state[0], cut.state[1], cut.arrived, plan.row_groups * counters_apart);
    const dim3 grid(static_cast<unsigned>(plan.unit_groups), static_cast<unsigned>(plan.row_groups));
    const std::size_t shared = plan.shared_bytes(E::tile);
    if (!plan.resident && error == cudaSuccess)
        error = launch(pack_weights<E, Task>, dim3(static_cast<unsigned>(plan.unit_groups * plan.unit_passes)),
                       dim3(threads), 0, stream, task, plan, H, const_cast<Word*>(cut.weights));
    if (plan.resident) {
        if (error == cudaSuccess && steps)
            error =
                launch_together(time_loop<E, Task>, grid, dim3(threads), shared, stream, task, cut, Index(0), steps);
        return error;
    }
    cut.arrived = nullptr;
    for (Index step = 0; step < steps && error == cudaSuccess; ++step)
        error = launch(time_loop<E, Task>, grid, dim3(threads), shared, stream, task, cut, step, step + 1);
    return error;
}

// The tile of the plan, as a type. The list is `tiles` in recurrent_plan.h.
template <Engine engine, bool several, class F>
cudaError_t with_mma_tile(int number, F&& with) {
    if (number == 0) return with(Mma<engine, 1, 1>());
    if constexpr (several) {
        switch (number) {
            case 1:
                return with(Mma<engine, 3, 1>());
            case 2:
                return with(Mma<engine, 2, 2>());
        }
    } else {
        switch (number) {
            case 5:
                return with(Mma<engine, 1, 2>());
            case 6:
                return with(Mma<engine, 1, 4>());
            case 7:
                return with(Mma<engine, 1, 8>());
        }
    }
    switch (number) {
        case 3:
            return with(Mma<engine, 2, 4>());
        case 4:
            return with(Mma<engine, 2, 8>());
    }
    return cudaErrorInvalidConfiguration;
}
template <bool several, class F>
cudaError_t with_tile(const Plan& plan, float, F&& with) {
    switch (plan.engine) {
        case Engine::split:
            return with_mma_tile<Engine::split, several>(plan.tile - first_mma, with);
        case Engine::tf32:
            return with_mma_tile<Engine::tf32, several>(plan.tile - first_mma, with);
        case Engine::bf16:
            return with_mma_tile<Engine::bf16, several>(plan.tile - first_pairs, with);
        default:
            break;
    }
    if constexpr (several) {
        switch (plan.tile) {
            case 0:
                return with(Ffma<float, 2, 4, 2>());
            case 1:
                return with(Ffma<float, 2, 12, 2>());
            case 2:
                return with(Ffma<float, 2, 8, 4>());
        }
    } else {
        switch (plan.tile) {
            case 3:
                return with(Ffma<float, 4, 4, 4>());
            case 4:
                return with(Ffma<float, 4, 4, 8>());
        }
    }
    switch (plan.tile) {
        case 5:
            return with(Ffma<float, 1, 4, 4>());
        case 6:
            return with(Ffma<float, 1, 8, 4>());
        case 7:
            return with(Ffma<float, 1, 8, 8>());
    }
    return cudaErrorInvalidConfiguration;
}
template <bool several, class F>
cudaError_t with_tile(const Plan& plan, Half, F&& with) {
    return with_mma_tile<Engine::fp16, several>(plan.tile - first_pairs, with);
}
template <bool several, class F>
cudaError_t with_tile(const Plan& plan, double, F&& with) {
    if constexpr (several) {
        if (plan.tile == 8) return with(Ffma<double, 2, 4, 2>());
    } else {
        if (plan.tile == 9) return with(Ffma<double, 4, 4, 4>());
    }
    if (plan.tile == 10) return with(Ffma<double, 1, 4, 4>());
    return cudaErrorInvalidConfiguration;
}

// ---- which step of which row ----------------------------------------------------------------------------------------

// Forward's step s is at t = s, or at T - 1 - s in reverse; a row is run where t lies within its length.
struct Steps {
    Index T;
    const Index* lengths;
    bool reverse;
    __device__ __forceinline__ Index forward(Index s) const { return reverse ? T - 1 - s : s; }
    __device__ __forceinline__ Index backward(Index s) const { return reverse ? s : T - 1 - s; }
    __device__ __forceinline__ bool runs(Index row, Index t) const { return !lengths || t < lengths[row]; }
};

// ---- sums over rows -------------------------------------------------------------------------------------------------

// a (R, M) -> sums (M) of its columns. A block has 32 columns and 8 warps of rows, every eighth row each; sums in
// double, since a bias' gradient has as many terms as there are steps.
template <class T, class A>
__global__ void __launch_bounds__(threads) column_sums_kernel(Index R, Index M, const T* a, A* sums) {
    double* partial = shared_memory<double>();
    const int lane = static_cast<int>(threadIdx.x) % warp_size, warp = static_cast<int>(threadIdx.x) / warp_size;
    const Index column = Index(blockIdx.x) * warp_size + lane;
    double sum = 0;
    if (column < M) {
#pragma unroll 8
        for (Index r = warp; r < R; r += warps) sum += static_cast<double>(a[r * M + column]);
    }
    partial[warp * warp_size + lane] = sum;
    __syncthreads();
    if (warp == 0 && column < M) {
        for (int w = 1; w < warps; ++w) sum += partial[w * warp_size + lane];
        sums[column] = rounded<A>(static_cast<T>(sum));
    }
}
template <class T, class A>
cudaError_t column_sums(cudaStream_t stream, Index R, Index M, const T* a, A* sums) {
    return launch(column_sums_kernel<T, A>, dim3(static_cast<unsigned>(ceil_div(M, warp_size))), dim3(threads),
                  threads * sizeof(double), stream, R, M, a, sums);
}

// ---- calls ----------------------------------------------------------------------------------------------------------

inline Steps steps_of(const Sequence& s) {
    return {s.T, s.lengths, s.reverse};
}

// A part of a buffer that another, which starts on a line, follows.
template <class T>
constexpr Index aligned(Index elements) {
    constexpr Index line = 128 / sizeof(T);
    return ceil_div(elements, line) * line;
}

// A row of steps keeps `kept` numbers for backward, and needs `da` of them there; `states` are kept from step to step.
// Sizes are in elements of A.
template <class A>
cudaError_t buffers(Index N, Index steps, Index H, int columns, Index kept, Index da, Index states,
                    BufferSizes& sizes) {
    using T = Computed<A>;
    constexpr Index each = sizeof(T) / sizeof(A);
    Limits limits{};
    const auto error = static_cast<cudaError_t>(current_limits(limits));
    if (error != cudaSuccess) return error;
    const Index apart = std::is_same_v<T, A> ? 0 : states * aligned<T>(N * H);
    sizes.reserve = each * N * steps * kept;
    sizes.forward = each * apart + scratch_elements(limits, N, H, columns, H, sizeof(A));
    sizes.backward =
        each * (aligned<T>(N * steps * da) + apart) + scratch_elements(limits, N, H, 1, columns * H, sizeof(A));
    return error;
}

// Where a state (N,H) is kept from step to step: in its output; or where that is of half precision, at `free`, which
// moves on.
template <class T, class A>
T* state_of(const Sequence& s, A* output, T*& free) {
    if constexpr (std::is_same_v<T, A>) {
        return output;
    } else {
        T* const state = free;
        free += aligned<T>(s.N * s.H);
        return state;
    }
}
// The task's, at the end, where that is not the output itself.
template <class A>
__device__ __forceinline__ void put_state_out(A* output, Index at, Computed<A> state) {
    if constexpr (std::is_same_v<A, Half>) output[at] = to_half(state);
}

template <class Task, class T>
cudaError_t run_loop(Stream stream, Precision precision, const Task& task, const Sequence& s, Index steps, T* scratch) {
    using A = typename Task::Array;
    if (s.N == 0 || s.H == 0) return cudaSuccess;
    Limits limits{};
    const auto error = static_cast<cudaError_t>(current_limits(limits));
    if (error != cudaSuccess) return error;
    const Plan plan = choose_plan(limits, s.N, s.H, Task::columns, task.depth(), sizeof(A), precision);
    return with_tile<(Task::columns > 1)>(plan, A(), [&](auto tile) {
        return run<decltype(tile)>(static_cast<cudaStream_t>(stream), task, plan, s.N, s.H, steps,
                                   reinterpret_cast<unsigned char*>(scratch));
    });
}
template <class Task, class T>
cudaError_t run_forward(Stream stream, Precision precision, const Task& task, const Sequence& s, T* scratch) {
    return run_loop(stream, precision, task, s, s.T, scratch);
}
template <class Task, class T>
cudaError_t run_backward(Stream stream, Precision precision, const Task& task, const Sequence& s, T* scratch) {
    return run_loop(stream, precision, task, s, s.T ? s.T + 1 : 0, scratch);
}

}  // namespace fastrnn::cuda::recurrent
