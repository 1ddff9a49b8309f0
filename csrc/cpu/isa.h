// The instruction-set table: what is compiled once per instruction set, behind function pointers.
//
// A set is one file, isa_<name>.cpp, that instantiates inner_loops.h with its own vector width and fills an Isa.
// isa.cpp holds the list and picks once, at import: the best that the processor has, or the one that FASTRNN_ISA names.
#pragma once

#include "../kernels.h"

namespace fastrnn::cpu {

// A tile: up to max_vectors vectors of columns by max_rows[vectors] rows of accumulators, which is what the registers
// hold.
constexpr int max_vectors = 4;
template <class T>
constexpr int max_lanes = 64 / sizeof(T);
// Rows that are worth multiplying by a right operand that is not packed.
constexpr int max_streamed_rows = 3;

// Rows of one tile of a recurrent step and where they live. All buffers are interleaved by group: a group is `lanes`
// hidden units, and a row holds, group after group, one vector for each gate.
template <class T>
struct Step {
    int rows;        // of this tile
    int vectors;     // groups of this tile (always 1 where the gates are the columns of the tile)
    int last_valid;  // units that exist in the last of these groups, 1..lanes
    const T* a;      // (rows, columns of the tile): the product
    Index lda;
    T* const* h_rows;  // (rows): where the tile's first unit stands in a row of h (N,T,H), or of dh
    T* h_next;         // (next_rows, ·): where the next step reads h, at the tile's first unit
    Index ld_next;
    int next_rows;  // rows of the tile that have a next step (the first so many)
};

// Rows of a matrix in an order given by keys, whose bits under the mask are the row's number; columns are contiguous.
template <class T>
struct Gather {
    const T* x;
    Index x_row;
    std::uint64_t mask;
    Index fetch;  // rows from the one that is added to the one that is fetched meanwhile
    bool stream;  // results go past the caches, where they begin on a cache line
    // Where sums begin at what is there: row `key >> shift` of it is fetched too. Else null.
    const T* into;
    Index into_row;
    int shift;
};

template <class T>
struct Table {
    int lanes;
    int max_rows[max_vectors + 1];
    // Rows of a right operand that are packed together, and the rows of T that they then fill. Float32: 1 and 1.
    // Operands rounded to bfloat16, two of which fill the place of one float: 2 and 1. Operands that are each the sum
    // of two bfloat16 numbers: 2 and 2. See packed().
    int depth_unit, unit_size;

    // C (rows, vectors * lanes) = init + A (rows, K) B (K, vectors * lanes). A(i, k) = A[i * a_row + k * a_col]; with
    // a_row 1, A was packed by pack_tile and a_col is rows. B is a packed panel. Vector j of row i of C is at
    // C[i * c_row + j * c_vec]; init likewise, null for zero. C may be init.
    void (*tile)(int rows, int vectors, Index K, const T* A, Index a_row, Index a_col, const T* B, const T* init,
                 Index init_row, Index init_vec, T* C, Index c_row, Index c_vec);

    // The same for up to max_streamed_rows rows, with B in place: its row k at B + k * b_row, vector j at + j * b_vec.
    // A's columns are contiguous. init is not null.
    void (*stream)(int rows, int vectors, Index K, const T* A, Index a_row, const T* B, Index b_row, Index b_vec,
                   const T* init, Index init_row, Index init_vec, T* C, Index c_row, Index c_vec);

    // Packs rows 0..K of B into a panel: vector j holds columns first[j] .. first[j] + valid[j], zeros after them.
    // Element (k, column) is at B[k * k_stride + column * col_stride].
    void (*pack)(int vectors, const Index* first, const int* valid, Index K, const T* B, Index k_stride,
                 Index col_stride, T* panel);

    // The left operand of one tile, packed: `rows` columns of A (K, ·), whose rows are ld apart, as [k][rows] or as
    // suits the tile. Pieces of K may be packed one by one, each to packed() of those before it, if all but the last
    // are multiples of tile_piece.
    void (*pack_tile)(int rows, Index K, const T* A, Index ld, T* out);

    // out (columns, rows) = A (rows, columns) transposed, rows of each at the distances given.
    void (*transpose)(Index rows, Index columns, const T* A, Index a_row, T* out, Index out_row);

    // gates (rows, 4 lanes) are saved, c (rows, lanes) is written, h goes to h_rows and h_next.
    void (*lstm_forward)(const Step<T>& s, const T* c_prev, T* c, Index ldc, T* gates, Index ld_gates);
    // a: dh from the next step, or null. dh_rows: dh from outside. dc (rows, lanes·vectors) in and out. da like gates.
    void (*lstm_backward)(const Step<T>& s, const T* const* dh_rows, const T* c_prev, const T* c, Index ldc,
                          const T* gates, Index ld_gates, T* dc, Index ld_dc, T* da);
    // pre (rows, 3 lanes): input parts of r, z, n; a: recurrent parts. saved (rows, 4 lanes): r, z, n, hn.
    void (*gru_forward)(const Step<T>& s, const T* pre, Index ld_pre, const T* h_prev, Index ld_prev, T* saved,
                        Index ld_saved);
    // dh (rows, lanes·vectors): the part of the next step's that does not pass through Wh; in and out.
    // dax (rows, 3 lanes): r, z, n; dah: r, z, hn.
    void (*gru_backward)(const Step<T>& s, const T* const* dh_rows, const T* h_prev, Index ld_prev, const T* saved,
                         Index ld_saved, T* dh, Index ld_dh, T* dax, T* dah, Index ld_da);
    // y (rows, lanes·vectors): h. Forward writes there what does not go to h_next.
    void (*rnn_forward)(const Step<T>& s, T* y, Index ldy);
    void (*rnn_backward)(const Step<T>& s, const T* const* dh_rows, const T* y, Index ldy, T* da, Index ld_da);

    // sum (vectors * lanes) += the rows of A (K, vectors * lanes), ld apart, in slices whose sums are then added up.
    void (*column_sums)(int vectors, Index K, const T* A, Index ld, T* sum);
    void (*add)(Index n, const T* x, T* sum);
    // One row of scores: softmax loss of word y, and the gradient times scale.
    double (*softmax_row)(Index V, const T* x, Index stride, Index y, T scale, T* dx);
    // Rows rows[r][k * stride] as the columns of a panel, zeros after the first `count`.
    void (*pack_rows)(int vectors, Index count, const T* const* rows, Index K, Index stride, T* panel);
    // Softmax with one sample a lane: row v of s (V, vectors * lanes) holds the scores of word v.
    // s += bias(v), top = max(top, s);  s = exp(s - top), sum = its sum over v;  s *= factor.
    void (*lanes_top)(Index V, int vectors, T* s, const T* bias, Index bias_stride, T* top);
    void (*lanes_exp)(Index V, int vectors, T* s, const T* top, T* sum);
    void (*lanes_scale)(Index V, int vectors, T* s, const T* factor);
    // y = log(x)
    void (*log)(Index n, const T* x, T* y);
    double (*squared_distance)(Index n, const T* a, const T* b);
    void (*scaled_difference)(Index n, const T* a, const T* b, T scale, T* out);
    double (*tv_row)(Index W, const T* row, const T* below);
    void (*tv_row_backward)(Index W, Index stride, const T* row, const T* above, const T* below, T scale, T* out);
    void (*sgd)(Index n, const T* w, const T* dw, T lr, T* out);
    void (*sgd_momentum)(Index n, const T* w, const T* dw, const T* v, T lr, T momentum, T* out, T* v_out);
    void (*rmsprop)(Index n, const T* w, const T* dw, const T* cache, T lr, T decay, T rest, T epsilon, T* out,
                    T* cache_out);
    void (*adam)(Index n, const T* w, const T* dw, const T* m, const T* v, const T* settings, T* out, T* m_out,
                 T* v_out);

    // out (n) = init + the rows of the first keys, added one by one: of those that agree with keys[0] above the mask,
    // at most so many. Returns how many. Null is 0; init may be out. Rows of keys up to `known` are fetched ahead.
    Index (*sum_rows)(const Gather<T>& g, Index n, const std::uint64_t* keys, Index most, Index known, const T* init,
                      T* out);

    // For tests: y = sigmoid(x), tanh(x), exp(x) (x <= 0) or log(x) by `which` 0, 1, 2, 3.
    void (*evaluate)(int which, Index n, const T* x, T* y);
    // Floating-point operations of a loop that touches registers only, `rounds` times.
    double (*peak)(Index rounds);
};

// See Table::pack_tile.
constexpr Index tile_piece = 64;

struct Isa {
    const char* name;
    Table<float> f32;
    Table<double> f64;
    // f32 with other products; lanes is 0 where there are none.
    Table<float> medium;  // operands rounded to bfloat16
    Table<float> high;    // operands split into the sum of two bfloat16 numbers
    // Called by each thread when its part of a kernel is done; null where there is nothing to do.
    void (*leave)();
    template <class T>
    const Table<T>& table() const {
        if constexpr (sizeof(T) == 4)
            return f32;
        else
            return f64;
    }
};

// The set in use.
const Isa& isa();
// Names of the compiled sets that this processor runs, best first; ends with null.
const char* const* isa_supported();
// Picks the set; null: the best. False: not compiled, or not had by this processor.
bool choose_isa(const char* name);

template <class T>
const Table<T>& table() {
    return isa().table<T>();
}

// How exact products of floats have to be: the lowest precision that they may have.
enum class Precision { highest, high, medium };
void set_precision(Precision lowest);
Precision precision();
// Products of floats in precision `p`; null where the instruction set in use has none but float32's.
inline const Table<float>* products_in(Precision p) {
    const Table<float>* t = p == Precision::medium ? &isa().medium : p == Precision::high ? &isa().high : nullptr;
    return t && t->lanes ? t : nullptr;
}
// The table of kernels whose products follow that setting.
template <class T>
const Table<T>& product_table() {
    if constexpr (sizeof(T) == 4)
        if (const Table<float>* t = products_in(precision())) return *t;
    return table<T>();
}
// Elements of a packed operand of K rows, each of `width` elements.
template <class T>
Index packed(const Table<T>& t, Index K, Index width) {
    return (K + t.depth_unit - 1) / t.depth_unit * t.unit_size * width;
}
// The most rows of T that K packed rows fill, in any precision: it may be set anew between sizing a buffer and using
// it.
constexpr Index packed_rows(Index K) {
    return K + K % 2;
}

}  // namespace fastrnn::cpu
