// Word embedding: rows gathered, and added back in an order that depends on the ids alone.
//
// Forward is a gather: a group of lanes a row, each with up to four loads of 16 bytes under way.
//
// Backward sorts the positions by word (CUB's radix sort, keys of id and position in 64 bits, sorted by the id's bits
// only: it is stable, so that equal words keep the order of their positions), and then every row of the gradient has
// one owner, who adds its rows of dout in that order: no atomics on results. Of a dense gradient the owners are the
// rows of dW, in tiles of a block: where a tile's words begin in the sorted list is found by a search of a warp (32
// probes at once), and an unused row is zeros. For `add` and a sparse gradient the owners are the words that occur,
// from a list of where each begins.
//
// A word as frequent as words of languages are would keep one owner busy for long: of 16,384 ids, the first of a Zipf
// list of 50,000 words has 1,400. So the sorted list is cut into chunks of 32 places, those into chunks of 32 chunks,
// and so on. A chunk whose places are all of one word is summed beforehand, by parts_kernel, and its owner adds the
// sum: at most 62 terms of each size. What is cut, and where, depends on the ids alone. Two sizes of chunks come with
// one launch (a block sums 32 chunks, then their sums): one launch below 32,768 ids, two below 33 million.
//
// Bytes, for 128·128 ids, V = 50,000, D = 512, float32: forward reads 33.6 MB (fewer where words repeat), writes 33.6;
// floor on an H100 (3.35 TB/s) 20 us. Backward reads 33.6 MB of dout and writes 102.4 MB of dW, most of it zeros; floor
// 40.6 us. Keys are 131 KB: their two passes of 8 bits cost launches, not bytes. If all ids are equal, the same bytes
// but for 1 MB of partial sums. Additions: 8.4 million, nothing.
//
// Not chosen: atomics (order), one owner a column for frequent words (each reads every position), filling dW with zeros
// while the sort runs (28 MB written twice, and a second stream to fork and join), begin and end of every word as an
// array of V (memory that grows with V where a sparse result was asked for).
#include "pack.h"

#if defined(FASTRNN_CUDA_ON_HOST)
#include <algorithm>
#else
#include <cub/device/device_radix_sort.cuh>
#include <limits>
#endif

namespace fastrnn::cuda {

namespace {

using Key = unsigned long long;  // a word's id above, its position in the low bits

constexpr int threads = 256;
constexpr int part_threads = 512;  // of parts_kernel, which has 32 chunks to share among its groups
constexpr int radix_bits = 5;
constexpr Index radix = Index(1) << radix_bits;  // items of a chunk
constexpr int batch = 8;                         // loads that a thread has under way while it sums
constexpr int tile_rows = 8;                     // rows of dW that a group of lanes writes
constexpr int gather_packs = 4;                  // that a thread has under way while it gathers
constexpr Index head_chunk = 2048;               // places of the sorted list that a block looks through for words
constexpr Index one_block_ids = 32768;           // up to so many, one block looks through ids

// Sorts keys by the bits [begin, end), equal ones in the order that they had. With no `scratch`, says how much of it
// there must be.
cudaError_t sort_keys(void* scratch, std::size_t& bytes, const Key* keys, Key* sorted, Index n, int begin, int end,
                      cudaStream_t stream) {
#if defined(FASTRNN_CUDA_ON_HOST)
    static_cast<void>(stream);
    if (!scratch) {
        bytes = 16;
        return cudaSuccess;
    }
    const Key mask = (end < 64 ? Key(1) << end : Key(0)) - (Key(1) << begin);
    std::copy(keys, keys + n, sorted);
    std::stable_sort(sorted, sorted + n, [mask](Key a, Key b) { return (a & mask) < (b & mask); });
    return cudaSuccess;
#else
    if (n <= std::numeric_limits<int>::max())
        return cub::DeviceRadixSort::SortKeys(scratch, bytes, keys, sorted, static_cast<int>(n), begin, end, stream);
    return cub::DeviceRadixSort::SortKeys(scratch, bytes, keys, sorted, n, begin, end, stream);
#endif
}

int bits_below(Index n) {  // of the numbers 0 to n - 1
    int bits = 0;
    while (bits < 63 && (Index(1) << bits) < n) ++bits;
    return bits;
}

// The sorted list.
struct Sorted {
    const Key* keys;
    Index n;
    int position_bits;
    __device__ __forceinline__ Index word(Index i) const { return static_cast<Index>(keys[i] >> position_bits); }
    __device__ __forceinline__ Index position(Index i) const {
        return static_cast<Index>(keys[i] & ((Key(1) << position_bits) - 1));
    }
    // The first place in [low, high) whose word is not below; or `high`.
    __device__ Index first(Index word_, Index low, Index high) const {
        while (low < high) {
            const Index middle = (low + high) / 2;
            if (word(middle) < word_)
                low = middle + 1;
            else
                high = middle;
        }
        return low;
    }
    // The same of all places, by a whole warp: the last place of each 32nd is looked at, at once.
    __device__ Index first_by_warp(Index word_) const {
        const int lane = threadIdx.x % warp_size;
        Index low = 0, high = n;
        while (low < high) {
            const Index step = ceil_div(high - low, warp_size), probe = low + lane * step + step - 1;
            const unsigned below = __ballot_sync(all_lanes, probe < high && word(probe) < word_);
            low = least(low + __popc(below) * step, high);
            high = least(high, low + step - 1);
        }
        return low;
    }
};

// Sums of the chunks: those of 32 places first, then those of 32 times as many, and so on; a row of `pitch` elements
// for each. Only chunks all of one word have a sum.
template <class T>
struct Parts {
    T* sums;
    Index pitch;
    int levels;  // sizes of chunks
    Index n;
    __device__ __forceinline__ T* of_level(int level) const {  // from 1
        Index before = 0;
        for (int l = 1; l < level; ++l) before += n >> (l * radix_bits);
        return sums + before * pitch;
    }
};

// What lies where in the workspace.
struct Plan {
    Plan(Index n_, Index V, Index D, Index itemsize, Index* workspace) : n(n_) {
        position_bits = bits_below(n);
        word_bits = most(1, bits_below(V));
        if (position_bits + word_bits > 64) position_bits = 64 - word_bits;  // not of any use: the caller says no
        pitch = ceil_div(D * itemsize, 16) * 16 / itemsize;
        Index part_rows = 0;
        for (Index chunks = n >> radix_bits; chunks; chunks >>= radix_bits) ++levels, part_rows += chunks;
        if (n > 0) error = sort_keys(nullptr, scratch_bytes, nullptr, nullptr, n, position_bits, end_bit(), nullptr);
        // `words` stands first, where the caller reads it; the rest on a multiple of 16 bytes.
        words = workspace;
        Index used = 1 + (reinterpret_cast<std::uintptr_t>(workspace + 1) % 16 ? 1 : 0);
        const auto take = [&](Index bytes) {
            Index* p = workspace + used;
            used += ceil_div(bytes, 16) * 2;
            return p;
        };
        keys = reinterpret_cast<Key*>(take(n * Index(sizeof(Key))));
        sorted = reinterpret_cast<Key*>(take(n * Index(sizeof(Key))));
        words_of_chunk = take(most<Index>(1, ceil_div(n, head_chunk)) * Index(sizeof(Index)));
        starts = take((least(n, V) + 1) * Index(sizeof(Index)));
        parts = take(part_rows * pitch * itemsize);
        scratch = take(static_cast<Index>(scratch_bytes));
        size = used + 1;
    }
    int end_bit() const { return position_bits + word_bits; }
    Sorted list() const { return {sorted, n, position_bits}; }

    Index n, pitch, size;
    int position_bits, word_bits, levels = 0;
    Key *keys, *sorted;
    Index *words, *words_of_chunk, *starts, *parts, *scratch;
    std::size_t scratch_bytes = 0;
    cudaError_t error = cudaSuccess;
};

// ---- sums
// ------------------------------------------------------------------------------------------------------------

// acc += the `count` packs at at(0), at(1), ..., in that order.
template <class P, class At>
__device__ __forceinline__ void add_packs(P& acc, Index count, At&& at) {
    Index j = 0;
    for (; j + batch <= count; j += batch) {
        P x[batch];
#pragma unroll
        for (int u = 0; u < batch; ++u) x[u] = *reinterpret_cast<const P*>(at(j + u));
#pragma unroll
        for (int u = 0; u < batch; ++u)
#pragma unroll
            for (int e = 0; e < P::size; ++e) acc.x[e] += x[u].x[e];
    }
    for (; j < count; j += batch / 2) {
        P x[batch / 2];
#pragma unroll
        for (int u = 0; u < batch / 2; ++u)
            if (j + u < count) x[u] = *reinterpret_cast<const P*>(at(j + u));
#pragma unroll
        for (int u = 0; u < batch / 2; ++u)
            if (j + u < count)
#pragma unroll
                for (int e = 0; e < P::size; ++e) acc.x[e] += x[u].x[e];
    }
}

// acc += items of a level: the rows of dout at the places from `first` on, or the sums of the chunks from `first` on.
template <class P, class T>
__device__ __forceinline__ void add_items(P& acc, const Sorted& list, const Parts<T>& parts, const Matrix<T>& dout,
                                          Index column, int level, Index first, Index count) {
    if (level == 0) {
        const T* from = dout.data + column * dout.col;
        add_packs(acc, count, [&](Index j) { return from + list.position(first + j) * dout.row; });
    } else {
        const T* from = parts.of_level(level) + first * parts.pitch + column;
        add_packs(acc, count, [&](Index j) { return from + j * parts.pitch; });
    }
}

// acc += the rows of dout at the places [begin, end), which are all of one word's: single rows up to the first whole
// chunk, chunks up to the first whole chunk of chunks, and down again.
template <class P, class T>
__device__ void add_word(P& acc, const Sorted& list, const Parts<T>& parts, const Matrix<T>& dout, Index column,
                         Index begin, Index end) {
    // One loop for both ways: the sums are in the code once, and take registers once.
    bool up = true;
    for (int level = 0; level >= 0; level += up ? 1 : -1) {
        const int bits = level * radix_bits;
        const Index chunk = radix << bits, border = (begin + chunk - 1) & -chunk;
        up = up && level < parts.levels && border + chunk <= end;
        const Index count = ((up ? border : end) - begin) >> bits;
        add_items(acc, list, parts, dout, column, level, begin >> bits, count);
        begin += count << bits;
    }
}

template <class P>
__device__ __forceinline__ P zeros() {
    P p;
#pragma unroll
    for (int e = 0; e < P::size; ++e) p.x[e] = 0;
    return p;
}

// Sums of the chunks of `level` and of the level above, whose items are those of the level below. A block has 32
// chunks, the slab of `lanes` packs of columns.
template <class P, class T>
__global__ void __launch_bounds__(part_threads, 2)
    parts_kernel(Sorted list, Parts<T> parts, Matrix<T> dout, Index D, int level, int lanes, Index slabs) {
    const Index block = blockIdx.x / slabs, slab = blockIdx.x % slabs;
    const Index column = (slab * lanes + threadIdx.x % lanes) * P::size;
    const int group = threadIdx.x / lanes, groups = part_threads / lanes;
    // Chunk c of a level is all of one word if its first and its last place are.
    const auto whole = [&](int l, Index c) {
        const int bits = l * radix_bits;
        return c < list.n >> bits && list.word(c << bits) == list.word(((c + 1) << bits) - 1);
    };
    const auto sum = [&](int l, Index c) {
        P acc = zeros<P>();
        add_items(acc, list, parts, dout, column, l - 1, c * radix, radix);
        *reinterpret_cast<P*>(parts.of_level(l) + c * parts.pitch + column) = acc;
    };
    for (int i = group; i < radix; i += groups) {
        const Index c = block * radix + i;
        if (column < D && whole(level, c)) sum(level, c);
    }
    if (level == parts.levels) return;
    __syncthreads();  // sums of this block's chunks are in memory
    if (group == 0 && column < D && whole(level + 1, block)) sum(level + 1, block);
}

// ---- owners
// ----------------------------------------------------------------------------------------------------------

// dW, rows of `rows_of_tile` a block, a slab of `lanes` packs of columns.
template <class P, class T>
__global__ void __launch_bounds__(threads, 3)
    dense_kernel(Sorted list, Parts<T> parts, Matrix<T> dout, Index V, Index D, int lanes, Index slabs, T* dW) {
    Index* starts = shared_memory<Index>();  // of the tile's words and of the one after
    const int groups = threads / lanes, rows = groups * tile_rows;
    const Index row0 = blockIdx.x / slabs * rows, slab = blockIdx.x % slabs;
    if (threadIdx.x < 2 * warp_size) {
        const int end = threadIdx.x / warp_size;
        const Index place = list.first_by_warp(row0 + end * rows);
        if (threadIdx.x % warp_size == 0) starts[end * rows] = place;
    }
    __syncthreads();
    const Index low = starts[0], high = starts[rows];
    for (int r = 1 + static_cast<int>(threadIdx.x); r < rows; r += threads) starts[r] = list.first(row0 + r, low, high);
    __syncthreads();
    const Index column = (slab * lanes + threadIdx.x % lanes) * P::size;
    if (column >= D) return;
    for (int r = static_cast<int>(threadIdx.x) / lanes; r < rows && row0 + r < V; r += groups) {
        P acc = zeros<P>();
        if (starts[r] < starts[r + 1]) add_word(acc, list, parts, dout, column, starts[r], starts[r + 1]);
        *reinterpret_cast<P*>(dW + (row0 + r) * D + column) = acc;
    }
}

// Rows of the words that occur, a group each: added to row `id` of `to`, or (rows not null) written as row i of it.
template <class P, class T>
__global__ void __launch_bounds__(threads, sizeof(T) == 4 ? 3 : 2)
    listed_kernel(Sorted list, Parts<T> parts, Matrix<T> dout, const Index* words, const Index* starts, Index D,
                  int lanes, Index slabs, T* to, Index row, Index col, Index* rows) {
    const Index slab = blockIdx.x % slabs, i = blockIdx.x / slabs * (threads / lanes) + threadIdx.x / lanes;
    if (i >= *words) return;
    const Index begin = starts[i], id = list.word(begin), column = (slab * lanes + threadIdx.x % lanes) * P::size;
    if (rows && column == 0) rows[i] = id;
    if (column >= D) return;
    P* at = reinterpret_cast<P*>(to + (rows ? i : id) * row + column * col);
    P acc = rows ? zeros<P>() : *at;
    add_word(acc, list, parts, dout, column, begin, starts[i + 1]);
    *at = acc;
}

// ---- the list
// --------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(threads) keys_kernel(Index n, Vec<Index> ids, int position_bits, Key* keys) {
    const Index i = blockIdx.x * Index(threads) + threadIdx.x;
    if (i < n) keys[i] = static_cast<Key>(ids(i)) << position_bits | static_cast<Key>(i);
}

// Whether a word begins at place i; and how many do in the threads before this one, and in the whole block. All call
// it.
struct Heads {
    bool here;
    int before, all;
};
__device__ Heads heads(const Sorted& list, Index i) {
    int* counts = shared_memory<int>();  // a warp each
    const int warp = threadIdx.x / warp_size, lane = threadIdx.x % warp_size;
    Heads h{};
    h.here = i < list.n && (i == 0 || list.word(i) != list.word(i - 1));
    const unsigned ballot = __ballot_sync(all_lanes, h.here);
    if (lane == 0) counts[warp] = __popc(ballot);
    __syncthreads();
    h.before = __popc(ballot & ((1u << lane) - 1));
    for (int w = 0; w < threads / warp_size; ++w) {
        if (w < warp) h.before += counts[w];
        h.all += counts[w];
    }
    __syncthreads();  // before the next call writes counts
    return h;
}

__global__ void __launch_bounds__(threads) count_words_kernel(Sorted list, Index* words_of_chunk) {
    Index sum = 0;
    for (Index i = 0; i < head_chunk; i += threads) sum += heads(list, blockIdx.x * head_chunk + i + threadIdx.x).all;
    if (threadIdx.x == 0) words_of_chunk[blockIdx.x] = sum;
}

// Where each word begins, and their number; starts[words] = n.
__global__ void __launch_bounds__(threads)
    list_words_kernel(Sorted list, const Index* words_of_chunk, Index* words, Index* starts) {
    Index* sums = shared_memory<Index>();  // a warp each
    Index before = 0;
    for (Index c = threadIdx.x; c < blockIdx.x; c += threads) before += words_of_chunk[c];
    before = warp_sum(before);
    if (threadIdx.x % warp_size == 0) sums[threadIdx.x / warp_size] = before;
    __syncthreads();
    before = 0;
    for (int w = 0; w < threads / warp_size; ++w) before += sums[w];
    __syncthreads();
    for (Index i = 0; i < head_chunk; i += threads) {
        const Index place = blockIdx.x * head_chunk + i + threadIdx.x;
        const Heads h = heads(list, place);
        if (h.here) starts[before + h.before] = place;
        before += h.all;
    }
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 0) {
        *words = before;
        starts[before] = list.n;
    }
}

// ---- forward
// ---------------------------------------------------------------------------------------------------------

template <class P, class T>
__global__ void __launch_bounds__(threads)
    gather_kernel(Index n, Index D, Vec<Index> ids, Matrix<T> W, int lanes, T* out) {
    const Index i = blockIdx.x * Index(threads / lanes) + threadIdx.x / lanes;
    if (i >= n) return;
    const T* from = W.data + ids(i) * W.row;
    T* to = out + i * D;
    const Index step = lanes * P::size;
    for (Index c = threadIdx.x % lanes * P::size; c < D; c += gather_packs * step) {
        P x[gather_packs];
#pragma unroll
        for (int u = 0; u < gather_packs; ++u)
            if (c + u * step < D) x[u] = *reinterpret_cast<const P*>(from + (c + u * step) * W.col);
#pragma unroll
        for (int u = 0; u < gather_packs; ++u)
            if (c + u * step < D) *reinterpret_cast<P*>(to + c + u * step) = x[u];
    }
}

// ---- the check of ids
// ------------------------------------------------------------------------------------------------

__global__ void no_bad_id_kernel(Key* position) {
    *position = ~Key(0);
}

// The least position of an id outside of [0, V), ~0 if there is none: into `position`, or (more than one block) the
// least of it and what stands there. The least is the same in whatever order it is found.
__global__ void __launch_bounds__(1024) first_bad_id_kernel(Index n, Vec<Index> ids, Index V, Key* position) {
    Key* found = shared_memory<Key>();  // by a warp each
    Key first = ~Key(0);
    for (Index i = blockIdx.x * Index(blockDim.x) + threadIdx.x; i < n; i += Index(gridDim.x) * blockDim.x)
        if (static_cast<Key>(ids(i)) >= static_cast<Key>(V)) first = least(first, static_cast<Key>(i));
    for (int other = warp_size / 2; other; other /= 2) first = least(first, __shfl_xor_sync(all_lanes, first, other));
    if (threadIdx.x % warp_size == 0) found[threadIdx.x / warp_size] = first;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (unsigned w = 1; w < blockDim.x / warp_size; ++w) first = least(first, found[w]);
    if (gridDim.x == 1)
        *position = first;
    else if (first != ~Key(0))
        atomicMin(position, first);
}

// ---- launches
// --------------------------------------------------------------------------------------------------------

// Lanes that share a row, a power of two, and how many groups of packs the row then has.
struct Lanes {
    int lanes = 1;
    Index slabs;
    explicit Lanes(Index packs) {
        while (lanes < warp_size && lanes < packs) lanes *= 2;
        slabs = most<Index>(1, ceil_div(packs, lanes));
    }
    dim3 blocks(Index others) const { return dim3(static_cast<unsigned>(others * slabs)); }
};

// The keys in order, and with `listed` where each word begins.
cudaError_t sort(cudaStream_t stream, const Plan& plan, Vec<Index> ids, bool listed) {
    cudaError_t error = plan.error;
    if (plan.n > 0) {
        const dim3 blocks(static_cast<unsigned>(ceil_div(plan.n, threads)));
        if (error == cudaSuccess)
            error = launch(keys_kernel, blocks, dim3(threads), 0, stream, plan.n, ids, plan.position_bits, plan.keys);
        std::size_t bytes = plan.scratch_bytes;
        if (error == cudaSuccess)
            error = sort_keys(plan.scratch, bytes, plan.keys, plan.sorted, plan.n, plan.position_bits, plan.end_bit(),
                              stream);
    }
    if (!listed) return error;
    const dim3 blocks(static_cast<unsigned>(most<Index>(1, ceil_div(plan.n, head_chunk))));
    constexpr std::size_t shared = threads / warp_size * sizeof(Index);
    if (error == cudaSuccess)
        error = launch(count_words_kernel, blocks, dim3(threads), shared, stream, plan.list(), plan.words_of_chunk);
    if (error == cudaSuccess)
        error = launch(list_words_kernel, blocks, dim3(threads), shared, stream, plan.list(), plan.words_of_chunk,
                       plan.words, plan.starts);
    return error;
}

template <class T>
Parts<T> parts_of(const Plan& plan) {
    return {reinterpret_cast<T*>(plan.parts), plan.pitch, plan.levels, plan.n};
}

template <class P, class T>
cudaError_t sum_parts(cudaStream_t stream, const Plan& plan, Matrix<T> dout, Index D) {
    const Lanes l(ceil_div(D, P::size));
    cudaError_t error = cudaSuccess;
    for (int level = 1; level <= plan.levels && error == cudaSuccess && D > 0; level += 2)
        error = launch(parts_kernel<P, T>, l.blocks(ceil_div(plan.n >> level * radix_bits, radix)), dim3(part_threads),
                       0, stream, plan.list(), parts_of<T>(plan), dout, D, level, l.lanes, l.slabs);
    return error;
}

template <class P, class T>
cudaError_t dense(cudaStream_t stream, const Plan& plan, Matrix<T> dout, Index V, Index D, T* dW) {
    const Lanes l(ceil_div(D, P::size));
    const Index rows = Index(threads / l.lanes) * tile_rows;
    cudaError_t error = sum_parts<P, T>(stream, plan, dout, D);
    if (error == cudaSuccess && D > 0)
        error = launch(dense_kernel<P, T>, l.blocks(ceil_div(V, rows)), dim3(threads),
                       static_cast<std::size_t>(rows + 1) * sizeof(Index), stream, plan.list(), parts_of<T>(plan), dout,
                       V, D, l.lanes, l.slabs, dW);
    return error;
}

// `most_words`: as many or fewer occur.
template <class P, class T>
cudaError_t listed(cudaStream_t stream, const Plan& plan, Matrix<T> dout, Index most_words, Index D, T* to, Index row,
                   Index col, Index* rows) {
    const Lanes l(ceil_div(D, P::size));
    cudaError_t error = sum_parts<P, T>(stream, plan, dout, D);
    if (error == cudaSuccess)
        error = launch(listed_kernel<P, T>, l.blocks(ceil_div(most_words, threads / l.lanes)), dim3(threads), 0, stream,
                       plan.list(), parts_of<T>(plan), dout, plan.words, plan.starts, D, l.lanes, l.slabs, to, row, col,
                       rows);
    return error;
}

// Calls f with the pack that suits the arrays.
template <class T, class F>
cudaError_t with_packs(bool in_packs_, F&& f) {
    return in_packs_ ? f(Pack<T>()) : f(Single<T>());
}

template <class T>
cudaError_t forward(cudaStream_t stream, Index n, Index D, Vec<Index> ids, Matrix<T> W, T* out) {
    if (D == 0) return cudaSuccess;
    return with_packs<T>(in_packs(W.data, W.row, W.col, D) && in_packs(out, D, 1, D), [&](auto pack) {
        using P = decltype(pack);
        const Lanes l(ceil_div(D, P::size));
        const dim3 blocks(static_cast<unsigned>(ceil_div(n, threads / l.lanes)));
        return launch(gather_kernel<P, T>, blocks, dim3(threads), 0, stream, n, D, ids, W, l.lanes, out);
    });
}

template <class T>
cudaError_t backward(cudaStream_t stream, const Plan& plan, Index V, Index D, Vec<Index> ids, Matrix<T> dout, T* dW,
                     Index dW_row, Index dW_col, bool add) {
    if (add && (plan.n == 0 || D == 0)) return cudaSuccess;
    const cudaError_t error = sort(stream, plan, ids, add);
    if (error != cudaSuccess) return error;
    return with_packs<T>(in_packs(dout.data, dout.row, dout.col, D) && in_packs(dW, dW_row, dW_col, D), [&](auto pack) {
        using P = decltype(pack);
        if (!add) return dense<P>(stream, plan, dout, V, D, dW);
        return listed<P>(stream, plan, dout, least(plan.n, V), D, dW, dW_row, dW_col, static_cast<Index*>(nullptr));
    });
}

template <class T>
cudaError_t sparse(cudaStream_t stream, const Plan& plan, Index D, Matrix<T> dout, Index k, Index* rows, T* values) {
    if (plan.error != cudaSuccess || k == 0) return plan.error;
    return with_packs<T>(in_packs(dout.data, dout.row, dout.col, D) && in_packs(values, D, 1, D), [&](auto pack) {
        return listed<decltype(pack)>(stream, plan, dout, k, D, values, D, Index(1), rows);
    });
}

}  // namespace

Error word_embedding_buffers(Index n, Index V, Index D, Index itemsize, Index* size) {
    const Plan plan(n, V, D, itemsize, nullptr);
    *size = plan.size;
    return plan.error;
}

Error first_bad_id(Stream stream, Index n, Vec<Index> ids, Index V, Index* position) {
    const auto s = static_cast<cudaStream_t>(stream);
    Key* to = reinterpret_cast<Key*>(position);
    constexpr int block = 1024;
    const std::size_t shared = block / warp_size * sizeof(Key);
    if (n <= one_block_ids) return launch(first_bad_id_kernel, dim3(1), dim3(block), shared, s, n, ids, V, to);
    const cudaError_t error = launch(no_bad_id_kernel, dim3(1), dim3(1), 0, s, to);
    if (error != cudaSuccess) return error;
    const auto blocks = static_cast<unsigned>(least<Index>(ceil_div(n, block * 8), 1024));
    return launch(first_bad_id_kernel, dim3(blocks), dim3(block), shared, s, n, ids, V, to);
}

template <class T>
Error word_embedding_forward(Stream stream, Index n, Index D, Vec<Index> ids, Matrix<T> W, T* out) {
    return forward(static_cast<cudaStream_t>(stream), n, D, ids, W, out);
}

template <class T>
Error word_embedding_backward(Stream stream, Index n, Index V, Index D, Vec<Index> ids, Matrix<T> dout,
                              Index* workspace, T* dW, Index dW_row, Index dW_col, bool add) {
    return backward(static_cast<cudaStream_t>(stream), Plan(n, V, D, sizeof(T), workspace), V, D, ids, dout, dW, dW_row,
                    dW_col, add);
}

Error word_embedding_sort(Stream stream, Index n, Index V, Index D, Index itemsize, Vec<Index> ids, Index* workspace) {
    return sort(static_cast<cudaStream_t>(stream), Plan(n, V, D, itemsize, workspace), ids, true);
}

template <class T>
Error word_embedding_sparse(Stream stream, Index n, Index V, Index D, Matrix<T> dout, Index* workspace, Index k,
                            Index* rows, T* values) {
    return sparse(static_cast<cudaStream_t>(stream), Plan(n, V, D, sizeof(T), workspace), D, dout, k, rows, values);
}

template Error word_embedding_forward<float>(Stream, Index, Index, Vec<Index>, Matrix<float>, float*);
template Error word_embedding_forward<double>(Stream, Index, Index, Vec<Index>, Matrix<double>, double*);
template Error word_embedding_backward<float>(Stream, Index, Index, Index, Vec<Index>, Matrix<float>, Index*, float*,
                                              Index, Index, bool);
template Error word_embedding_backward<double>(Stream, Index, Index, Index, Vec<Index>, Matrix<double>, Index*, double*,
                                               Index, Index, bool);
template Error word_embedding_sparse<float>(Stream, Index, Index, Index, Matrix<float>, Index*, Index, Index*, float*);
template Error word_embedding_sparse<double>(Stream, Index, Index, Index, Matrix<double>, Index*, Index, Index*,
                                             double*);

}  // namespace fastrnn::cuda
