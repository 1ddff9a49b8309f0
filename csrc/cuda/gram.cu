// Gram matrices, and their gradient: products of feature maps in tiles of 64 by 64, accurate to float32.
//
// Both are c(i,j) = sum over k of a(i,k) b(j,k). Gram: a and b are the features, rows are channels and k is a position;
// only tiles on or above the diagonal are computed, and written twice, so that the result is exactly symmetric.
// Gradient: a is scale (dg + dg^T), prepared by symmetric_kernel, b the features with positions as rows; k is a
// channel. An operand comes to shared memory in slabs of 128 bytes of k (64: FMA kernel) as it lies in memory, rows or
// k running, by 16 bytes at a time (copy_async, three slabs under way) where addresses and sizes are multiples of that;
// otherwise element by element.
//
// float32 on tensor cores (compute capability 8.0, 9.x, 10.x): each operand is split, x = big + small, both TF32 of 11
// bits, and big·big + big·small + small·big are summed; what is left out is 2^-22 of a product. Tensor cores cut off
// what does not fit the accumulator instead of rounding it (Ootomo and Yokota, 2022): sums of one sign drift. So
// big·big is summed over one slab of 32 only, and added to the whole by ordinary additions, which round; the two small
// products have sums of their own, of which the cut is 2^-11 times as large. A product with an infinity is NaN here
// where float32 might give an infinity: its small part is infinity less infinity.
//
// The count: a warp has 32 by 32 of a tile; for 8 of k, 24 mma (8,192 multiply-adds thrice), 16 loads of 4 bytes a
// lane, 48 operations for the splits. An H100's sub-core does an m16n8k8 TF32 mma in 4 clocks by its peak, and in some
// 6 by mma.sync: 149 clocks for 8,192 multiply-adds, 220 a clock of the SM, beside 128 of FMA at best. Where TF32 runs
// at FMA's speed (8.6, 8.9, 12.0: 128 a clock) three products would be three times as slow, 7.5 has none: these take
// the FMA kernel, and float64 does. That one has 8 by 8 sums a thread (float64: 4 by 4) of which two sets, one for 64
// of k (32), are added up: one running sum over all of k would break the tolerance rule.
//
// Sums over k are cut into parts where there are few tiles, so that all SMs have some; partial tiles are then added in
// order by add_parts_kernel. The cut depends on the sizes and on the device.
//
// Floors on an H100 (3.35 TB/s, 132 SMs at 1.75 GHz):
//   (1,64,512²)  Gram 67 MB, 20 us; 1.09 G multiply-adds of the one tile's 20 of 32 mma tiles on or above the diagonal
//                take 13 us at 220 a clock. 256 parts. (FMA: 1.07 G of the whole tile, 36 us at best.)
//                Gradient 134 MB, 40 us; 1.07 G multiply-adds, 21 us.
//   (8,512,28²)  Gram 12.8 MB in, 8.4 MB out, 6.3 us; 288 tiles of 3.2 M: 0.92 G multiply-adds, 18 us if evenly
//                spread; 288 blocks on 132 SMs are not: 25 us. In two parts: 21 us, and the partial tiles' 19 MB.
//                Gradient 25.7 MB, 7.7 us; 1.64 G multiply-adds, 32 us. (FMA: 56 us at best.)
//
// The diagonal of a tile leaves the warp below it idle and gives the others 6, 8 and 6 of 8 mma tiles: which warp has
// which quarter turns from block to block, so that the blocks of an SM fill its four sub-cores evenly.
//
// Not chosen: six products of bfloat16 thirds (twice the rate of TF32, twice the products, more splitting); wgmma
// (operands from shared memory would have to be split there first: two more copies of each slab); tiles of 128 by 128
// (80 for 132 SMs in the second case); splits kept in shared memory (twice the bytes of each load of a fragment,
// against 48 operations that the tensor cores hide).
#include "pack.h"

namespace fastrnn::cuda {

namespace {

constexpr int tile = 64;
constexpr int tile_size = tile * tile;
constexpr int add_threads = 256, add_columns = 32;  // of add_parts_kernel
constexpr int add_segments = add_threads / add_columns;

// ---- operands in shared memory
// ---------------------------------------------------------------------------------------

// Rows of one of the two matrices, of one image after the other.
template <class T>
struct Operand {
    const T* data;
    Index batch, row, k;  // strides
    Index rows, size_k;
    bool packs;  // 16 bytes at once may be read
};

// A slab of 64 rows and `depth` of k in shared memory. Pitches keep the lanes of a fragment, or of a vector, in
// different banks: 36 and 72 words (TF32), 20 and 72.
template <class T, bool rows_run, int depth>
struct Slab {
    static constexpr int pitch = rows_run ? tile + 32 / int(sizeof(T)) : depth + 16 / int(sizeof(T));
    static constexpr int size = rows_run ? depth * pitch : tile * pitch;
    __device__ static __forceinline__ int at(int row, int k) { return rows_run ? k * pitch + row : row * pitch + k; }

    // Rows from row0 and k from k0 to `end` on; zeros beyond.
    template <int threads>
    __device__ static __forceinline__ void load(T* to, const Operand<T>& from, Index batch, Index row0, Index k0,
                                                Index end) {
        constexpr int n = Pack<T>::size, line = rows_run ? tile : depth;
        const T* data = from.data + batch * from.batch + row0 * from.row + k0 * from.k;
        const int rows = static_cast<int>(least<Index>(tile, from.rows - row0));
        const int ks = static_cast<int>(least<Index>(depth, least(end, from.size_k) - k0));
        if (from.packs) {
#pragma unroll
            for (int i = 0; i < tile * depth / n / threads; ++i) {
                const int c = static_cast<int>(threadIdx.x) + i * threads;
                const int run = c % (line / n) * n, other = c / (line / n);
                const int row = rows_run ? run : other, k = rows_run ? other : run;
                const bool valid = row < rows && k < ks;
                copy_async(to + at(row, k), valid ? data + row * from.row + k * from.k : from.data, valid);
            }
        } else {
#pragma unroll 8
            for (int i = 0; i < tile * depth / threads; ++i) {
                const int c = static_cast<int>(threadIdx.x) + i * threads;
                const int row = rows_run ? c % line : c / line, k = rows_run ? c / line : c % line;
                to[at(row, k)] = row < rows && k < ks ? data[row * from.row + k * from.k] : T(0);
            }
        }
    }
};

// ---- which block does what
// -------------------------------------------------------------------------------------------

template <class T>
struct Product {
    Operand<T> a, b;
    bool symmetric;          // a is b, and half of the tiles are not computed
    Index tiles_a, tiles;    // tiles along the rows of a; of an image
    Index k, parts, part_k;  // the sum over k, how many parts it is cut into, and their length
    T scale;
    T* out;
    Index out_batch, out_row, out_col;
    T* partial;  // tiles of the parts, if there are more than one
};

// Tile number `index` of the upper triangle, column after column.
__host__ __device__ inline void triangle(Index index, Index& row, Index& column) {
    column = static_cast<Index>((sqrt(8.0 * static_cast<double>(index) + 1) - 1) / 2);
    while (column * (column + 1) / 2 > index) --column;
    while ((column + 1) * (column + 2) / 2 <= index) ++column;
    row = index - column * (column + 1) / 2;
}

struct Place {
    int batch, row, column, part;  // row and column: of tiles
    template <class T>
    __device__ explicit Place(const Product<T>& p, Index number) {
        Index i, j;
        const Index t = number / p.parts % p.tiles;
        if (p.symmetric) {
            triangle(t, i, j);
        } else {
            i = t % p.tiles_a;
            j = t / p.tiles_a;
        }
        row = static_cast<int>(i);
        column = static_cast<int>(j);
        part = static_cast<int>(number % p.parts);
        batch = static_cast<int>(number / p.parts / p.tiles);
    }
    template <class T>
    __device__ __forceinline__ bool diagonal(const Product<T>& p) const {
        return p.symmetric && row == column;
    }
};

// Element (i,j) of the block's tile, into the result or its mirror image too.
template <class T>
__device__ __forceinline__ void store(const Product<T>& p, const Place& at, int i, int j, T x) {
    const Index row = Index(at.row) * tile + i, column = Index(at.column) * tile + j;
    if (row >= p.a.rows || column >= p.b.rows || (p.symmetric && row > column)) return;
    T* out = p.out + at.batch * p.out_batch;
    x *= p.scale;
    out[row * p.out_row + column * p.out_col] = x;
    if (p.symmetric && row != column) out[column * p.out_row + row * p.out_col] = x;
}

// The same of a part's sum.
template <class T>
__device__ __forceinline__ void store_part(const Product<T>& p, const Place& at, Index number, int i, int j, T x) {
    if (p.parts == 1)
        store(p, at, i, j, x);
    else
        p.partial[number * tile_size + i * tile + j] = x;
}

// Runs `compute(slab of a, slab of b)` over the block's part of k, with `stages` slabs in shared memory.
template <class T, bool a_rows_run, bool b_rows_run, int depth, int stages, int threads, class Compute>
__device__ __forceinline__ void over_slabs(const Product<T>& p, const Place& at, Compute&& compute) {
    using A = Slab<T, a_rows_run, depth>;
    using B = Slab<T, b_rows_run, depth>;
    T* ring = shared_memory<T>();
    const Index begin = Index(at.part) * p.part_k, end = least(p.k, begin + p.part_k);
    const int slabs = static_cast<int>(ceil_div(end - begin, depth));
    const bool same = at.diagonal(p);  // one slab is both
    const auto load = [&](int s) {
        if (s < slabs) {
            T* to = ring + s % stages * (A::size + B::size);
            A::template load<threads>(to, p.a, at.batch, Index(at.row) * tile, begin + s * depth, end);
            if (!same)
                B::template load<threads>(to + A::size, p.b, at.batch, Index(at.column) * tile, begin + s * depth, end);
        }
        copy_async_commit();  // empty at the end, so that the count of groups stays right
    };
    for (int s = 0; s < stages - 1; ++s) load(s);
    for (int s = 0; s < slabs; ++s) {
        copy_async_wait<stages - 2>();
        __syncthreads();  // slab s is here, and no thread reads slab s - 1, whose place is filled next
        load(s + stages - 1);
        const T* a = ring + s % stages * (A::size + B::size);
        compute(a, same ? a : a + A::size, s);
    }
}

template <class T, bool a_rows_run, bool b_rows_run, int depth, int stages>
constexpr std::size_t ring_bytes =
    stages * sizeof(T) * (Slab<T, a_rows_run, depth>::size + Slab<T, b_rows_run, depth>::size);

// ---- tensor cores
// ----------------------------------------------------------------------------------------------------

constexpr int mma_threads = 128, mma_depth = 32, mma_stages = 3;
constexpr int mma_rows = 2, mma_columns = 4;  // mma tiles of a warp

template <bool value_>
struct Flag {
    static constexpr bool value = value_;
};

struct Split {
    std::uint32_t big, small;
    __device__ __forceinline__ explicit Split(float x) {
        big = to_tf32(x);
        small = to_tf32(x - __uint_as_float(big));
    }
};

template <bool a_rows_run, bool b_rows_run>
__global__ void __launch_bounds__(mma_threads, 3) mma_kernel(const Product<float> p) {
    using A = Slab<float, a_rows_run, mma_depth>;
    using B = Slab<float, b_rows_run, mma_depth>;
    const Index number = blockIdx.x;
    const Place at(p, number);
    const unsigned lane = threadIdx.x % warp_size;
    const int g = static_cast<int>(lane / 4), q = static_cast<int>(lane % 4);
    const unsigned quarter = (threadIdx.x / warp_size + blockIdx.x + blockIdx.x / 128) % 4;
    const int row0 = static_cast<int>(quarter / 2) * 32, column0 = static_cast<int>(quarter % 2) * 32;
    // The mma tiles that have elements of the result that are wanted.
    unsigned wanted = 0;
    for (int i = 0; i < mma_rows; ++i)
        for (int j = 0; j < mma_columns; ++j) {
            const int row = row0 + 16 * i, column = column0 + 8 * j;
            const bool there = Index(at.row) * tile + row < p.a.rows && Index(at.column) * tile + column < p.b.rows;
            if (there && !(at.diagonal(p) && column + 7 < row)) wanted |= 1u << (i * mma_columns + j);
        }
    float sum[mma_rows][mma_columns][4] = {}, big[mma_rows][mma_columns][4], small[mma_rows][mma_columns][4] = {};

    const auto products = [&](const float* a, const float* b, auto all) {
        const auto skip = [&](int i, int j) { return !decltype(all)::value && !(wanted >> (i * mma_columns + j) & 1); };
#pragma unroll
        for (int i = 0; i < mma_rows; ++i)
#pragma unroll
            for (int j = 0; j < mma_columns; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) big[i][j][e] = 0;
#pragma unroll 1  // unrolled, it does not fit the 168 registers that leave room for three blocks an SM
        for (int k = 0; k < mma_depth; k += 8) {
            std::uint32_t a_big[mma_rows][4], a_small[mma_rows][4], b_big[mma_columns][2], b_small[mma_columns][2];
#pragma unroll
            for (int i = 0; i < mma_rows; ++i)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const Split x(a[A::at(row0 + 16 * i + g + e % 2 * 8, k + q + e / 2 * 4)]);
                    a_big[i][e] = x.big;
                    a_small[i][e] = x.small;
                }
#pragma unroll
            for (int j = 0; j < mma_columns; ++j)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    const Split x(b[B::at(column0 + 8 * j + g, k + q + e * 4)]);
                    b_big[j][e] = x.big;
                    b_small[j][e] = x.small;
                }
            // One kind after the other: eight products that do not wait for each other.
#pragma unroll
            for (int i = 0; i < mma_rows; ++i)
#pragma unroll
                for (int j = 0; j < mma_columns; ++j)
                    if (!skip(i, j)) mma_tf32(small[i][j], a_small[i], b_big[j]);
#pragma unroll
            for (int i = 0; i < mma_rows; ++i)
#pragma unroll
                for (int j = 0; j < mma_columns; ++j)
                    if (!skip(i, j)) mma_tf32(small[i][j], a_big[i], b_small[j]);
#pragma unroll
            for (int i = 0; i < mma_rows; ++i)
#pragma unroll
                for (int j = 0; j < mma_columns; ++j)
                    if (!skip(i, j)) mma_tf32(big[i][j], a_big[i], b_big[j]);
        }
#pragma unroll
        for (int i = 0; i < mma_rows; ++i)
#pragma unroll
            for (int j = 0; j < mma_columns; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sum[i][j][e] += big[i][j][e];
    };
    over_slabs<float, a_rows_run, b_rows_run, mma_depth, mma_stages, mma_threads>(
        p, at, [&](const float* a, const float* b, int) {
            if (wanted == (1u << mma_rows * mma_columns) - 1)
                products(a, b, Flag<true>());
            else if (wanted)
                products(a, b, Flag<false>());
        });
#pragma unroll
    for (int i = 0; i < mma_rows; ++i)
#pragma unroll
        for (int j = 0; j < mma_columns; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                store_part(p, at, number, row0 + 16 * i + g + e / 2 * 8, column0 + 8 * j + 2 * q + e % 2,
                           sum[i][j][e] + small[i][j][e]);
}

// ---- multiply-adds
// ---------------------------------------------------------------------------------------------------

template <class T>
struct Fma {
    static constexpr int side = 32 / sizeof(T);  // sums of a thread: side by side
    static constexpr int across = tile / side;   // threads along a side of the tile
    static constexpr int threads = across * across;
    static constexpr int depth = 64 / sizeof(T);
    static constexpr int stages = 2;
    static constexpr int slabs_of_sum = 4;  // that a running sum goes over
    static constexpr int k_step = 8 / sizeof(T);
};

// The rows of thread t of those along a side: neighbours have neighbouring rows, or (vectors of rows) vectors of them.
template <class T, bool rows_run>
__device__ __forceinline__ constexpr int row_of(int t, int i) {
    constexpr int n = rows_run ? Pack<T>::size : 1;
    return i / n * n * Fma<T>::across + t * n + i % n;
}

// A thread's rows of k_step of k.
template <class T, bool rows_run>
__device__ __forceinline__ void read(const T* slab, int t, int k, T (&x)[Fma<T>::side][Fma<T>::k_step]) {
    using S = Slab<T, rows_run, Fma<T>::depth>;
    using F = Fma<T>;
    if constexpr (rows_run) {
#pragma unroll
        for (int v = 0; v < F::k_step; ++v)
#pragma unroll
            for (int i = 0; i < F::side; i += Pack<T>::size) {
                const auto pack = *reinterpret_cast<const Pack<T>*>(slab + S::at(row_of<T, true>(t, i), k + v));
#pragma unroll
                for (int e = 0; e < Pack<T>::size; ++e) x[i + e][v] = pack.x[e];
            }
    } else {
        struct alignas(8) Step {
            T x[F::k_step];
        };
#pragma unroll
        for (int i = 0; i < F::side; ++i) {
            const auto step = *reinterpret_cast<const Step*>(slab + S::at(row_of<T, false>(t, i), k));
#pragma unroll
            for (int v = 0; v < F::k_step; ++v) x[i][v] = step.x[v];
        }
    }
}

template <class T, bool a_rows_run, bool b_rows_run>
__global__ void __launch_bounds__(Fma<T>::threads) fma_kernel(const Product<T> p) {
    using F = Fma<T>;
    const Index number = blockIdx.x;
    const Place at(p, number);
    const int ty = static_cast<int>(threadIdx.x) / F::across, tx = static_cast<int>(threadIdx.x) % F::across;
    T sum[F::side][F::side] = {}, running[F::side][F::side] = {};
    const auto add_up = [&] {
#pragma unroll
        for (int i = 0; i < F::side; ++i)
#pragma unroll
            for (int j = 0; j < F::side; ++j) {
                sum[i][j] += running[i][j];
                running[i][j] = 0;
            }
    };
    over_slabs<T, a_rows_run, b_rows_run, F::depth, F::stages, F::threads>(
        p, at, [&](const T* a, const T* b, int slab) {
#pragma unroll
            for (int k = 0; k < F::depth; k += F::k_step) {
                T x[F::side][F::k_step], y[F::side][F::k_step];
                read<T, a_rows_run>(a, ty, k, x);
                read<T, b_rows_run>(b, tx, k, y);
#pragma unroll
                for (int v = 0; v < F::k_step; ++v)
#pragma unroll
                    for (int i = 0; i < F::side; ++i)
#pragma unroll
                        for (int j = 0; j < F::side; ++j) running[i][j] += x[i][v] * y[j][v];
            }
            if (slab % F::slabs_of_sum == F::slabs_of_sum - 1) add_up();
        });
    add_up();
#pragma unroll
    for (int i = 0; i < F::side; ++i)
#pragma unroll
        for (int j = 0; j < F::side; ++j)
            store_part(p, at, number, row_of<T, a_rows_run>(ty, i), row_of<T, b_rows_run>(tx, j), sum[i][j]);
}

// ---- what stands around them
// -----------------------------------------------------------------------------------------

// Adds up the parts of 32 elements of a tile: eight threads an element have an eighth of its parts each, in order, and
// their sums are added in order.
template <class T>
__global__ void __launch_bounds__(add_threads) add_parts_kernel(const Product<T> p) {
    constexpr int strips = tile_size / add_columns;
    const Index number = blockIdx.x / strips;  // of the tile
    const int column = static_cast<int>(threadIdx.x) % add_columns,
              segment = static_cast<int>(threadIdx.x) / add_columns;
    const int element = static_cast<int>(blockIdx.x % strips) * add_columns + column;
    const int i = element / tile, j = element % tile;
    const Place at(p, number * p.parts);
    const bool wanted =
        Index(at.row) * tile + i < p.a.rows && Index(at.column) * tile + j < p.b.rows && !(at.diagonal(p) && i > j);
    T sum = 0;
    if (wanted) {
        const Index begin = p.parts * segment / add_segments, end = p.parts * (segment + 1) / add_segments;
        const T* from = p.partial + number * p.parts * tile_size + element;
#pragma unroll 8
        for (Index part = begin; part < end; ++part) sum += from[part * tile_size];
    }
    T* sums = shared_memory<T>();
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (segment != 0 || !wanted) return;
    for (int s = 1; s < add_segments; ++s) sum += sums[s * add_columns + column];
    store(p, at, i, j, sum);
}

constexpr int square = 32, square_rows = 8;

// s (N,C,pitch) = scale (dg + dg^T), 0 from column C on. A block has a square of it.
template <class T>
__global__ void __launch_bounds__(square* square_rows)
    symmetric_kernel(Index C, Index pitch, Index squares, Cube<T> dg, T scale, T* s) {
    T* mirrored = shared_memory<T>();  // a square of dg as it lies, a column of room against bank conflicts
    const Index batch = blockIdx.x / squares / squares;
    const Index row0 = blockIdx.x / squares % squares * square, column0 = blockIdx.x % squares * square;
    const int x = static_cast<int>(threadIdx.x) % square, y = static_cast<int>(threadIdx.x) / square;
    for (int i = y; i < square; i += square_rows) {
        const Index row = column0 + i, column = row0 + x;
        mirrored[i * (square + 1) + x] = row < C && column < C ? dg.at(batch, row)[column * dg.s2] : T(0);
    }
    __syncthreads();
    for (int i = y; i < square; i += square_rows) {
        const Index row = row0 + i, column = column0 + x;
        if (row >= C || column >= pitch) continue;
        T sum = 0;
        if (column < C) sum = scale * (dg.at(batch, row)[column * dg.s2] + mirrored[x * (square + 1) + i]);
        s[(batch * C + row) * pitch + column] = sum;
    }
}

// ---- plans
// -----------------------------------------------------------------------------------------------------------

template <class T>
bool on_tensor_cores(const Device& d) {
    return sizeof(T) == 4 && (d.major == 9 || d.major == 10 || (d.major == 8 && d.minor == 0));
}

// Into how many parts the sum over k is cut, and their length. An SM is busy with `fill` blocks at least; the time is
// that of the SM with most blocks, in slabs, and adding parts up costs about as much as 16.
template <class T>
void cut(const Device& d, Index tiles, Index k, Index& parts, Index& part_k) {
    const bool tensor = on_tensor_cores<T>(d);
    const Index depth = tensor ? mma_depth : Fma<T>::depth, step = 4 * depth;
    const Index fill = tensor ? 2 : 512 / Fma<T>::threads;
    const auto time = [&](Index n) {
        return most(fill, ceil_div(tiles * n, d.sms)) * ceil_div(k, n * step) * 4 + (n > 1 ? 16 : 0);
    };
    parts = 1;
    const Index most_parts = least(k / (2 * step), ceil_div(2 * fill * d.sms, most<Index>(1, tiles)));
    for (Index n = 2; n <= most_parts; ++n)
        if (time(n) < time(parts)) parts = n;
    part_k = ceil_div(ceil_div(k, parts), step) * step;
    parts = most<Index>(1, ceil_div(k, most<Index>(1, part_k)));
}

// Kernels by layout: which of the two axes of an operand runs. A gradient's a is always k.
template <class T, bool a_rows_run, bool b_rows_run>
cudaError_t launch_product(cudaStream_t stream, const Device& d, const Product<T>& p, dim3 blocks) {
    if constexpr (sizeof(T) == 4)
        if (on_tensor_cores<T>(d))
            return launch(mma_kernel<a_rows_run, b_rows_run>, blocks, dim3(mma_threads),
                          ring_bytes<T, a_rows_run, b_rows_run, mma_depth, mma_stages>, stream, p);
    using F = Fma<T>;
    return launch(fma_kernel<T, a_rows_run, b_rows_run>, blocks, dim3(F::threads),
                  ring_bytes<T, a_rows_run, b_rows_run, F::depth, F::stages>, stream, p);
}

// Whether rows run, and whether 16 bytes at once may be read.
template <class T>
bool runs_along_rows(Operand<T>& o, Index images) {
    const bool rows_run = o.row == 1 && o.k != 1;
    const Index run = rows_run ? o.row : o.k, other = rows_run ? o.k : o.row;
    constexpr Index n = Pack<T>::size;
    o.packs = run == 1 && other % n == 0 && (images == 1 || o.batch % n == 0) &&
              (rows_run ? o.rows : o.size_k) % n == 0 && reinterpret_cast<std::uintptr_t>(o.data) % 16 == 0;
    return rows_run;
}

Index pitch_of(Index C, Index itemsize) {
    return ceil_div(C * itemsize, 16) * 16 / itemsize;
}

// All parts of a product over N images.
template <class T>
cudaError_t run(cudaStream_t stream, const Device& d, Product<T>& p, Index N) {
    const bool a_rows_run = runs_along_rows(p.a, N), b_rows_run = runs_along_rows(p.b, N);
    const dim3 blocks(static_cast<unsigned>(N * p.tiles * p.parts));
    cudaError_t error;
    if (a_rows_run)
        error = launch_product<T, true, true>(stream, d, p, blocks);  // a is b
    else if (b_rows_run)
        error = launch_product<T, false, true>(stream, d, p, blocks);
    else
        error = launch_product<T, false, false>(stream, d, p, blocks);
    if (error != cudaSuccess || p.parts == 1) return error;
    return launch(add_parts_kernel<T>, dim3(static_cast<unsigned>(N * p.tiles * (tile_size / add_columns))),
                  dim3(add_threads), add_threads * sizeof(T), stream, p);
}

}  // namespace

template <class T>
Error gram_cut(Index N, Index C, Index P, Index* tiles, Index* parts, Index* part_k) {
    Device d;
    const cudaError_t error = current_device(d);
    const Index side = ceil_div(C, tile);
    *tiles = side * (side + 1) / 2;
    if (error == cudaSuccess) cut<T>(d, N * *tiles, P, *parts, *part_k);
    return error;
}

template <class T>
Error gram_buffers(Index N, Index C, Index P, BufferSizes* sizes) {
    Index tiles = 0, parts = 1, part_k = 0;
    const Error error = gram_cut<T>(N, C, P, &tiles, &parts, &part_k);
    *sizes = {0, parts > 1 ? N * tiles * parts * tile_size : 0, N * C * pitch_of(C, sizeof(T))};
    return error;
}

template <class T>
Error gram_matrix(Stream stream, Index N, Index C, Index P, Cube<T> f, double scale, T* workspace, T* g) {
    Device d;
    const cudaError_t error = current_device(d);
    if (error != cudaSuccess) return error;
    Product<T> p{};
    p.a = p.b = {f.data, f.s0, f.s1, f.s2, C, P, false};
    p.symmetric = true;
    p.tiles_a = ceil_div(C, tile);
    p.tiles = p.tiles_a * (p.tiles_a + 1) / 2;
    p.k = P;
    cut<T>(d, N * p.tiles, P, p.parts, p.part_k);
    p.scale = static_cast<T>(scale);
    p.out = g;
    p.out_batch = C * C;
    p.out_row = C;
    p.out_col = 1;
    p.partial = workspace;
    return run(static_cast<cudaStream_t>(stream), d, p, N);
}

template <class T>
Error gram_backward(Stream stream, Index N, Index C, Index P, Cube<T> dg, Cube<T> f, double scale, T* workspace, T* df,
                    Index df_s0, Index df_s1, Index df_s2) {
    Device d;
    cudaError_t error = current_device(d);
    if (error != cudaSuccess || N == 0 || C == 0 || P == 0) return error;
    const auto s = static_cast<cudaStream_t>(stream);
    const Index pitch = pitch_of(C, sizeof(T)), squares = ceil_div(pitch, square);
    error = launch(symmetric_kernel<T>, dim3(static_cast<unsigned>(N * squares * squares)), dim3(square * square_rows),
                   square * (square + 1) * sizeof(T), s, C, pitch, squares, dg, static_cast<T>(scale), workspace);
    if (error != cudaSuccess) return error;
    Product<T> p{};
    p.a = {workspace, C * pitch, pitch, 1, C, pitch, false};
    p.b = {f.data, f.s0, f.s2, f.s1, P, C, false};
    p.tiles_a = ceil_div(C, tile);
    p.tiles = p.tiles_a * ceil_div(P, tile);
    p.k = C;
    p.parts = 1;
    p.part_k = C;
    p.scale = 1;
    p.out = df;
    p.out_batch = df_s0;
    p.out_row = df_s1;
    p.out_col = df_s2;
    return run(s, d, p, N);
}

template Error gram_cut<float>(Index, Index, Index, Index*, Index*, Index*);
template Error gram_cut<double>(Index, Index, Index, Index*, Index*, Index*);
template Error gram_buffers<float>(Index, Index, Index, BufferSizes*);
template Error gram_buffers<double>(Index, Index, Index, BufferSizes*);
template Error gram_matrix<float>(Stream, Index, Index, Index, Cube<float>, double, float*, float*);
template Error gram_matrix<double>(Stream, Index, Index, Index, Cube<double>, double, double*, double*);
template Error gram_backward<float>(Stream, Index, Index, Index, Cube<float>, Cube<float>, double, float*, float*,
                                    Index, Index, Index);
template Error gram_backward<double>(Stream, Index, Index, Index, Cube<double>, Cube<double>, double, double*, double*,
                                     Index, Index, Index);

}  // namespace fastrnn::cuda
