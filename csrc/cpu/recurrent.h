// What the recurrent cells share: the order in which rows are run, the private copies of inputs and states, and the
// products before and after the time loop.
//
// Packed rows. Sequences are sorted by length, longest first; step s runs the sequences still alive, which are the
// first so many, and its rows stand at offset[s] .. offset[s + 1] of every buffer. Nothing is computed for steps that
// do not exist, and `reverse` only changes which time step of the input a row is.
//
// Buffers kept by forward (reserve):
//   xh  (R, ld)   the input of each row, then the hidden state before it: [x | h]. It is at once the left operand of
//   the
//                 forward products and, transposed, that of the weight gradients; the padded length of its rows keeps
//                 them out of each other's cache sets.
// Groups: `lanes` hidden units, the unit of work that threads share out. A cell's buffers hold, row by row and group by
// group, one vector for each gate, so that a group's gates are one panel of the product and one stretch of memory.
#pragma once

#include "gemm.h"

namespace fastrnn::cpu {

// Elements of the gates of four groups whose weights are used in place.
constexpr int max_several = max_streamed_rows * max_vectors * max_vectors * 16;

// Steps projected ahead have at least this many rows together, so that each weight that is loaded is used often.
constexpr Index projected_rows = 48;

template <class T>
struct Shape {
    Index N, steps, D, H;  // steps: T, the length of the arrays
    int lanes;
    bool swapped;             // as Sequence has it
    Index groups, units, ld;  // units: H rounded up to whole groups; ld: row length of xh

    Shape(Index n, Index t, Index d, Index h, bool swap = false)
        : N(n), steps(t), D(d), H(h), lanes(table<T>().lanes), swapped(swap) {
        groups = ceil_div(H, lanes);
        units = groups * lanes;
        ld = padded_row<T>(D + H);
    }
    explicit Shape(const Sequence& s) : Shape(s.N, s.T, s.D, s.H, s.swapped) {}
    Index most_rows() const { return N * steps; }
    // Rows of a panel that holds the packed weights of x and of h, one after the other.
    Index weight_rows() const { return packed_rows(D) + packed_rows(H); }
    // Where a gate's columns begin in the caller's weights and biases.
    Index columns_of(int gate) const { return (swapped && gate >= 2 ? 5 - gate : gate) * H; }
    int valid(Index group) const { return static_cast<int>(std::min<Index>(lanes, H - group * lanes)); }
};

// The gates of one group of hidden units as a panel.
template <class T>
Columns gate_columns(const Shape<T>& s, int gates, Index group) {
    Columns c{};
    c.vectors = gates;
    for (int j = 0; j < gates; ++j) {
        c.first[j] = s.columns_of(j) + group * s.lanes;
        c.valid[j] = s.valid(group);
    }
    return c;
}

// As pack_panel where k runs over gates as the interleaved buffers hold them, [group][gate][lane], of a matrix whose
// element (gate's unit, column) is at B[(columns_of(gate) + unit) * k_stride + column * col_stride].
template <class T>
void pack_panel_by_gate(const Table<T>& t, const Shape<T>& s, const Columns& c, int gates, const T* B, Index k_stride,
                        Index col_stride, T* panel) {
    const Index width = static_cast<Index>(c.vectors) * t.lanes, piece = packed(t, t.lanes, width);
    for (Index unit = 0; unit < s.H; unit += t.lanes) {
        const Index n = std::min<Index>(t.lanes, s.H - unit);
        for (int gate = 0; gate < gates; ++gate, panel += piece) {
            pack_panel(t, c, n, B + (s.columns_of(gate) + unit) * k_stride, k_stride, col_stride, panel);
            std::fill(panel + packed(t, n, width), panel + piece, T(0));
        }
    }
}

// The order of rows.
class Rows {
  public:
    static Index indices(Index N, Index steps) { return 2 * N + steps + 1; }

    // memory: indices(N, T) elements.
    Rows(const Sequence& s, Index* memory)
        : N_(s.N), T_(s.T), reverse_(s.reverse), order_(memory), length_(memory + N_), offset_(memory + 2 * N_) {
        for (Index n = 0; n < N_; ++n) order_[n] = n;
        if (s.lengths)
            std::stable_sort(order_, order_ + N_, [&](Index a, Index b) { return s.lengths[a] > s.lengths[b]; });
        for (Index r = 0; r < N_; ++r) length_[r] = s.lengths ? s.lengths[order_[r]] : T_;
        Index alive = N_, total = 0;
        steps_ = N_ ? length_[0] : 0;
        for (Index step = 0; step < T_; ++step) {
            offset_[step] = total;
            while (alive && length_[alive - 1] <= step) --alive;
            total += alive;
        }
        offset_[T_] = total;
    }

    Index steps() const { return steps_; }
    Index total() const { return offset_[T_]; }
    Index at(Index step) const { return offset_[step]; }
    Index alive(Index step) const { return step < T_ ? offset_[step + 1] - offset_[step] : 0; }
    Index sequence(Index r) const { return order_[r]; }
    Index length(Index r) const { return length_[r]; }
    Index time(Index step, Index r) const { return reverse_ ? length_[r] - 1 - step : step; }
    // Row of a (N, T, ·) array that row r of this step is.
    Index flat(Index step, Index r) const { return order_[r] * T_ + time(step, r); }

  private:
    Index N_, T_, steps_;
    bool reverse_;
    Index *order_, *length_, *offset_;
};

template <class T>
void copy_row(T* to, const T* from, Index n, Index stride) {
    if (stride == 1)
        std::copy_n(from, n, to);
    else
        for (Index i = 0; i < n; ++i) to[i] = from[i * stride];
}

// x and h0 into xh; zeros into h at steps that are not run. Sequences are shared out among the workers.
template <class T>
void gather_inputs(const Worker& w, const Shape<T>& s, const Rows& rows, const Cube<T>& x, const Matrix<T>& h0, T* xh,
                   T* h) {
    const Range mine = share(s.N, w);
    for (Index r = mine.begin; r < mine.end; ++r) {
        const Index n = rows.sequence(r), length = rows.length(r);
        for (Index step = 0; step < length; ++step)
            copy_row(xh + (rows.at(step) + r) * s.ld, x.at(n, rows.time(step, r)), s.D, x.s2);
        if (length) copy_row(xh + r * s.ld + s.D, h0.data + n * h0.row, s.H, h0.col);
        std::fill(h + (n * s.steps + length) * s.H, h + (n + 1) * s.steps * s.H, T(0));
    }
}

// The last state of each sequence out of h, or out of h0 where no step was run.
template <class T>
void final_states(const Worker& w, const Shape<T>& s, const Rows& rows, const Matrix<T>& h0, const T* h, T* h_n) {
    const Range mine = share(s.N, w);
    for (Index r = mine.begin; r < mine.end; ++r) {
        const Index n = rows.sequence(r), length = rows.length(r);
        if (length)
            std::copy_n(h + rows.flat(length - 1, r) * s.H, s.H, h_n + n * s.H);
        else
            copy_row(h_n + n * s.H, h0.data + n * h0.row, s.H, h0.col);
    }
}

// Panels into which groups are cut for products whose columns are hidden units: at most max_vectors groups each, of
// nearly one size, and one for each worker where there are enough groups.
inline Index unit_panels(Index groups, const Worker& w) {
    return std::max(ceil_div(groups, max_vectors), std::min<Index>(groups, w.count));
}
inline Index panel_start(Index groups, Index panels, Index p) {
    return groups * p / panels;
}

// A worker's part of packing Wh transposed, whose k runs over gates, for the steps of backward; the panel that begins
// with group g goes to panel_at(g).
template <class T, class F>
void pack_recurrent(const Worker& w, const Table<T>& t, const Shape<T>& s, Index panels, int gates, Matrix<T> Wh,
                    F&& panel_at) {
    const Range mine = share(panels, w);
    for (Index p = mine.begin; p < mine.end; ++p) {
        const Index g = panel_start(s.groups, panels, p), end = panel_start(s.groups, panels, p + 1);
        pack_panel_by_gate(t, s, plain_columns(s.H, s.lanes, g, end), gates, Wh.data, Wh.col, Wh.row, panel_at(g));
    }
}

// A worker's part of a step: columns of `groups` in so many panels, all `rows` rows of each. Whole panels where they
// come out even; else two workers share a panel, and cut its rows. Calls f(group, groups of the panel, first row, end).
// A worker's part is the same in every step of the same number of rows.
template <class F>
void for_share(const Worker& w, Index groups, Index panels, Index rows, const int* max_rows, int gates, F&& f) {
    const Index total = groups * rows;
    const Index begin = total * w.index / w.count, end = total * (w.index + 1) / w.count;
    for (Index p = 0; p < panels; ++p) {
        const Index g = panel_start(groups, panels, p), size = panel_start(groups, panels, p + 1) - g;
        if ((g + size) * rows <= begin || g * rows >= end) continue;
        // Cut at whole tiles: few rows are never cut, and then groups fall to workers as share() gives them.
        const Index height = max_rows[gates * size];
        const auto row_of = [&](Index x) {
            const Index row = std::clamp<Index>((x - g * rows) / size, 0, rows);
            return row == rows ? rows : row / height * height;
        };
        const Index first = row_of(begin), last = row_of(end);
        if (first < last) f(g, static_cast<int>(size), first, last);
    }
}

// Pointers to the rows of h, or of dh, that a tile stands for, at hidden unit `unit`.
template <class T>
void h_rows(const Shape<T>& s, const Rows& rows, Index step, Index first, int count, Index unit, T* h, T** out) {
    for (int i = 0; i < count; ++i) out[i] = h + rows.flat(step, first + i) * s.H + unit;
}

// The same for dh, which may have any strides: where its last axis has one, the units are copied into `copy`
// (count, width).
template <class T>
void dh_rows(const Rows& rows, Index step, Index first, int count, Index unit, Index width, Index H, const Cube<T>& dh,
             T* copy, const T** out) {
    for (int i = 0; i < count; ++i) {
        const T* from = dh.at(rows.sequence(first + i), rows.time(step, first + i)) + unit * dh.s2;
        if (dh.s2 != 1) {
            copy_row(copy + i * width, from, std::min(width, H - unit), dh.s2);
            from = copy + i * width;
        }
        out[i] = from;
    }
}

// Rows of dh_n (or zeros where it is null), padded with zeros: the gradient that reaches a sequence's last step from
// its final state instead of from a next step.
template <class T>
void final_gradients(const Rows& rows, Index first, int count, Index unit, Index width, Index H, const Matrix<T>& dh_n,
                     T* out) {
    for (int i = 0; i < count; ++i) {
        T* row = out + i * width;
        std::fill(row, row + width, T(0));
        if (dh_n.data)
            copy_row(row, dh_n.data + rows.sequence(first + i) * dh_n.row + unit * dh_n.col, std::min(width, H - unit),
                     dh_n.col);
    }
}

// Whether weights are used in place: a single step of few rows uses each weight once, and packing would cost more.
template <class T>
bool weights_in_place(const Shape<T>& s, const Rows& rows, const Matrix<T>& Wx, const Matrix<T>& Wh) {
    return rows.steps() == 1 && s.N <= max_streamed_rows && Wx.col == 1 && Wh.col == 1;
}

// Groups from g on, at most four, whose weights can be used in place: those before `end` with all their units.
template <class T>
int whole_groups(const Shape<T>& s, Index g, Index end) {
    const Index whole = std::min(end, s.H / s.lanes);
    return static_cast<int>(std::clamp<Index>(whole - g, 0, max_vectors));
}

// The gates of some groups from g on: C = init + A W with W in place, gate after gate, so that what is read of a row of
// W is one stretch. Groups of init and of C are at the distances given; a group holds its gates one after another.
template <class T>
void gates_in_place(const Shape<T>& s, Index g, int groups, int gates, int rows, Index K, const T* A,
                    const Matrix<T>& W, const T* init, Index init_row, Index init_group, T* C, Index c_row,
                    Index c_group) {
    const Table<T>& t = table<T>();
    for (int gate = 0; gate < gates; ++gate)
        t.stream(rows, groups, K, A, s.ld, W.data + s.columns_of(gate) + g * s.lanes, W.row, s.lanes,
                 init + gate * s.lanes, init_row, init_group, C + gate * s.lanes, c_row, c_group);
}

// C = init + [x | h] panel, where the panels of Wx and Wh follow each other.
template <class T>
void multiply_both(const Table<T>& t, const Shape<T>& s, int rows, int vectors, const T* xh, const T* panel,
                   const T* init, T* C) {
    const Index width = Index(vectors) * s.lanes;
    if (s.D % t.depth_unit == 0)
        return t.tile(rows, vectors, s.D + s.H, xh, s.ld, 1, panel, init, 0, s.lanes, C, width, s.lanes);
    // Wx has a packed row that is not full.
    t.tile(rows, vectors, s.D, xh, s.ld, 1, panel, init, 0, s.lanes, C, width, s.lanes);
    t.tile(rows, vectors, s.H, xh + s.D, s.ld, 1, panel + packed(t, s.D, width), C, width, s.lanes, C, width, s.lanes);
}

// Steps to project together so that they have projected_rows rows.
inline Index steps_ahead(const Rows& rows, Index step) {
    Index ahead = 1;
    while (step + ahead < rows.steps() && rows.at(step + ahead) - rows.at(step) < projected_rows) ++ahead;
    return ahead;
}

// Elements of `left` and of `spill` that weight_gradients needs.
template <class T>
Index gradient_left(const Shape<T>& s) {
    return (s.D + s.H) * packed_rows(std::min(long_block, s.most_rows()));
}
template <class T>
Index gradient_spill(const Shape<T>& s, int gates) {
    return s.H % s.lanes ? (s.D + s.H) * (gates == 1 ? max_vectors : gates) * s.lanes : 0;
}

// Weight gradients dWx (D, gates H) and dWh (H, gates H), [x | h]^T da, the rows of the result shared out in tiles, and
// db (gates H), the sum of da. da (R, ld_da) is interleaved by group, `gates` vectors each. dWx or dWh may be null: it
// is left out.
//
// Of each block of k, a worker copies its columns of xh into tiles, once, and each panel of da next to each other; the
// product then reads both in order, and what it adds to a tile of the result is long_block deep. Measured before, with
// xh read in place and the result's columns shared out: 61 % of the peak on (256,32,512,1024), K = 8192; so: 86 %, with
// blocks of 256, 512 and 1024 taking 548, 527 and 491 ms.
// Panels packed once, each worker its share, instead of by every worker for itself: nothing gained, they then come from
// the other core's caches.
template <class T>
void weight_gradients(const Worker& w, const Table<T>& t, const Shape<T>& s, Index total, const T* xh, const T* da,
                      Index ld_da, int gates, T* left, T* spill, Result<T> dWx, Result<T> dWh, T* db) {
    const int most = gates == 1 ? static_cast<int>(std::clamp<Index>(s.groups, 1, max_vectors)) : gates;
    const Index height = t.max_rows[most], panels = gates == 1 ? ceil_div(s.groups, max_vectors) : s.groups;
    const Index for_x = dWx.data ? ceil_div(s.D, height) : 0, for_h = dWh.data ? ceil_div(s.H, height) : 0;
    const Range mine = share(for_x + for_h, w), sums = share(panels, w);
    const Index block_rows = std::min(long_block, total);
    const Index left_rows = packed_rows(block_rows);
    const auto rows_of = [&](Index tile) {
        return std::min(height, tile < for_x ? s.D - tile * height : s.H - (tile - for_x) * height);
    };
    // Column of xh, and row of [dWx; dWh], that a tile begins with.
    const auto first_of = [&](Index tile) { return tile < for_x ? tile * height : s.D + (tile - for_x) * height; };
    const auto result_of = [&](Index i) {
        return i < s.D ? Result<T>{dWx.data + i * dWx.row, dWx.row, dWx.col}
                       : Result<T>{dWh.data + (i - s.D) * dWh.row, dWh.row, dWh.col};
    };
    const Index interleaved[max_vectors] = {0, s.lanes, 2 * s.lanes, 3 * s.lanes};
    const int whole[max_vectors] = {s.lanes, s.lanes, s.lanes, s.lanes};
    T block[long_block * max_vectors * max_lanes<T>], sum[max_vectors * max_lanes<T>], turned[max_tile];
    Index k = 0;
    do {
        const Index depth = std::min(block_rows, total - k);
        // A few k at a time, so that their cache lines serve all tiles.
        constexpr Index few = tile_piece;
        for (Index q = 0; q < depth; q += few)
            for (Index tile = mine.begin; tile < mine.end; ++tile) {
                const Index rows = rows_of(tile);
                t.pack_tile(static_cast<int>(rows), std::min(few, depth - q), xh + (k + q) * s.ld + first_of(tile),
                            s.ld, left + first_of(tile) * left_rows + packed(t, q, rows));
            }
        for (Index p = 0; p < panels; ++p) {
            const bool summed = p >= sums.begin && p < sums.end;
            if (!summed && mine.begin == mine.end) continue;
            const Columns c =
                gates == 1 ? plain_columns(s.H, s.lanes, p * max_vectors, s.groups) : gate_columns(s, gates, p);
            const Index width = Index(c.vectors) * s.lanes, start = p * (gates == 1 ? max_vectors : gates) * s.lanes;
            t.pack(c.vectors, interleaved, whole, depth, da + k * ld_da + start, ld_da, Index(1), block);
            if (summed) {
                // Between blocks the sum stands in db.
                std::fill(sum, sum + width, T(0));
                for (int j = 0; j < c.vectors; ++j)
                    if (k) std::copy_n(db + c.first[j], c.valid[j], sum + j * s.lanes);
                t.column_sums(c.vectors, depth, da + k * ld_da + start, ld_da, sum);
                for (int j = 0; j < c.vectors; ++j) std::copy_n(sum + j * s.lanes, c.valid[j], db + c.first[j]);
            }
            // Only the last panel can be short of units; then the result goes through spill.
            const bool full = c.valid[c.vectors - 1] == s.lanes;
            for (Index tile = mine.begin; tile < mine.end; ++tile) {
                const Index rows = rows_of(tile), first = first_of(tile);
                const Result<T> to = result_of(first);
                const bool in_columns = to.col != 1 || s.swapped;
                const auto multiply = [&](T* C, Index c_row, Index c_vec) {
                    t.tile(static_cast<int>(rows), c.vectors, depth, left + first * left_rows, 1, rows, block,
                           k ? C : nullptr, c_row, c_vec, C, c_row, c_vec);
                };
                if (in_columns) {
                    // A result in columns waits in rows of the tile, which stays in the L1.
                    for (int j = 0; k && j < c.vectors; ++j)
                        t.transpose(c.valid[j], rows, to.data + c.first[j] * to.col, to.col, turned + j * s.lanes,
                                    width);
                    multiply(turned, width, s.lanes);
                    for (int j = 0; j < c.vectors; ++j)
                        t.transpose(rows, c.valid[j], turned + j * s.lanes, width, to.data + c.first[j] * to.col,
                                    to.col);
                } else if (full) {
                    multiply(to.data + c.first[0], to.row, gates > 1 ? c.first[1] - c.first[0] : s.lanes);
                } else {
                    multiply(spill + first * width, width, s.lanes);
                    for (Index i = 0; k + depth >= total && i < rows; ++i)
                        for (int j = 0; j < c.vectors; ++j)
                            std::copy_n(spill + (first + i) * width + j * s.lanes, c.valid[j],
                                        to.data + i * to.row + c.first[j]);
                }
            }
        }
        k += depth;
    } while (k < total);
}

// dx (N, T, D) = da Wx^T, for the columns of this worker; zeros at steps that were not run.
// panel: gates * units * 4 lanes. chunk: row_chunk * 4 lanes.
template <class T>
void input_gradient(const Worker& w, const Table<T>& t, const Shape<T>& s, const Rows& rows, const T* da, Index ld_da,
                    int gates, const Matrix<T>& Wx, T* panel, T* chunk, T* dx) {
    const Range mine = share(ceil_div(s.D, s.lanes), w);
    const Index K = s.units * gates;
    for (Index v = mine.begin; v < mine.end; v += max_vectors) {
        const Columns c = plain_columns(s.D, s.lanes, v, mine.end);
        const Index width = c.vectors * s.lanes, columns = std::min(width, s.D - c.first[0]);
        pack_panel_by_gate(t, s, c, gates, Wx.data, Wx.col, Wx.row, panel);
        // Packed row p is row `r` of step `step`.
        Index step = 0, r = 0;
        for (Index p = 0; p < rows.total(); p += row_chunk) {
            const Index count = std::min(row_chunk, rows.total() - p);
            multiply_panel(t, count, c.vectors, K, da + p * ld_da, ld_da, Index(1), panel,
                           static_cast<const T*>(nullptr), Index(0), chunk, width, Index(s.lanes));
            for (Index i = 0; i < count; ++i) {
                std::copy_n(chunk + i * width, columns, dx + rows.flat(step, r) * s.D + c.first[0]);
                if (++r == rows.alive(step)) ++step, r = 0;
            }
        }
        for (Index q = 0; q < s.N; ++q)
            for (Index time = rows.length(q); time < s.steps; ++time) {
                T* row = dx + (rows.sequence(q) * s.steps + time) * s.D + c.first[0];
                std::fill(row, row + columns, T(0));
            }
    }
}

// Biases in the interleaved order.
template <class T>
void interleave_bias(const Shape<T>& s, Index group, int gates, const Vec<T>& b, T* out) {
    for (int g = 0; g < gates; ++g)
        for (int i = 0; i < s.lanes; ++i)
            *out++ = b.data && i < s.valid(group) ? b(s.columns_of(g) + group * s.lanes + i) : T(0);
}

}  // namespace fastrnn::cpu
