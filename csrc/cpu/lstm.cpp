// LSTM over whole sequences.
//
// Forward, per group of hidden units: a = b + [x | h] [Wx; Wh] with the four gates of the group as one panel of
// columns, so that its accumulators hold everything that the cell needs; the gates are applied to the tile while it is
// in the L1. A thread keeps its groups, and so its part of the weights, for all steps; threads meet once a step, when h
// is written. Where a step has few rows, the input part is computed several steps ahead. Backward, per group: dh = da'
// Wh^T from the next step's da, then the gates, then this step's da; one meeting a step. The weight gradients and dx
// are large products after the loop.
#include "recurrent.h"

namespace fastrnn::cpu {

namespace {

constexpr int gates = 4;

// reserve
template <class T>
struct Kept {
    Index ld_gates;
    T *xh, *saved, *c;  // xh (R, ld); saved (R, ld_gates): gates; c (N + R, units): the initial states, then each row's
    Index used;

    Kept(const Shape<T>& s, const T* memory) {
        Carver<T> carve(memory);
        ld_gates = padded_row<T>(gates * s.units);
        xh = carve.take(s.most_rows() * s.ld);
        saved = carve.take(s.most_rows() * ld_gates);
        c = carve.take((s.N + s.most_rows()) * s.units);
        used = carve.used();
    }
    // The cell state before row r of a step; of the first step it is the initial one.
    T* before(const Shape<T>& s, const Rows& rows, Index step, Index r) const {
        return c + (step ? s.N + rows.at(step - 1) + r : r) * s.units;
    }
};

template <class T>
struct ForwardScratch {
    Index* indices;
    T *panels, *bias, *pre;  // panels: groups x (D + H, 4 lanes); pre: groups x (rows projected ahead, 4 lanes)
    Index panel, ahead, used;

    ForwardScratch(const Shape<T>& s, T* memory) {
        Carver<T> carve(memory);
        const Index width = gates * s.lanes;
        panel = s.weight_rows() * width;
        // Steps are added until they have projected_rows rows, so the last one can bring N - 1 more.
        ahead = std::min(projected_rows + s.N, s.most_rows());
        indices = carve.take_indices(Rows::indices(s.N, s.steps));
        panels = carve.take(s.groups * panel);
        bias = carve.take(s.groups * width);
        pre = carve.take(s.groups * ahead * width);
        used = carve.used();
    }
};

template <class T>
struct BackwardScratch {
    Index* indices;
    T *panels, *da, *dc, *left, *spill, *dx_panel;
    Index used;

    BackwardScratch(const Shape<T>& s, Index ld_gates, T* memory) {
        Carver<T> carve(memory);
        indices = carve.take_indices(Rows::indices(s.N, s.steps));
        panels = carve.take(s.groups * s.lanes * gates * s.units);
        da = carve.take(s.most_rows() * ld_gates);
        dc = carve.take(s.N * s.units);
        left = carve.take(gradient_left(s));
        spill = carve.take(gradient_spill(s, gates));
        dx_panel = carve.take(ceil_div(s.D, s.lanes) * s.lanes * gates * s.units);
        used = carve.used();
    }
};

}  // namespace

template <class T>
BufferSizes lstm_buffers(Index N, Index steps, Index D, Index H) {
    const Shape<T> s(N, steps, D, H);
    const Kept<T> kept(s, nullptr);
    return {kept.used, ForwardScratch<T>(s, nullptr).used, BackwardScratch<T>(s, kept.ld_gates, nullptr).used};
}

template <class T>
void lstm_forward(Sequence sequence, Cube<T> x, Matrix<T> h0, Matrix<T> c0, Matrix<T> Wx, Matrix<T> Wh, Vec<T> b, T* h,
                  T* h_n, T* c_n, T* reserve, T* workspace) {
    const Table<T>& t = product_table<T>();
    const Shape<T> s(sequence);
    const Kept<T> kept(s, reserve);
    const ForwardScratch<T> scratch(s, workspace);
    const Rows rows(sequence, scratch.indices);
    const Index width = gates * s.lanes;
    const bool in_place = weights_in_place(s, rows, Wx, Wh);
    const double operations = 2.0 * rows.total() * (s.D + s.H) * gates * s.H;

    run(threads_for(operations, s.groups), [&](const Worker& w) {
        const Range mine = share(s.groups, w);
        gather_inputs(w, s, rows, x, h0, kept.xh, h);
        const Range sequences = share(s.N, w);
        for (Index r = sequences.begin; r < sequences.end; ++r) {
            T* c = kept.c + r * s.units;
            std::fill(c, c + s.units, T(0));
            if (c0.data) copy_row(c, c0.data + rows.sequence(r) * c0.row, s.H, c0.col);
        }
        for (Index g = mine.begin; g < mine.end; ++g) {
            const Columns c = gate_columns(s, gates, g);
            T* panel = scratch.panels + g * scratch.panel;
            interleave_bias(s, g, gates, b, scratch.bias + g * width);
            if (in_place && s.valid(g) == s.lanes) continue;
            pack_panel(t, c, s.D, Wx.data, Wx.row, Wx.col, panel);
            pack_panel(t, c, s.H, Wh.data, Wh.row, Wh.col, panel + packed(t, s.D, width));
        }
        w.barrier();

        T tile[max_tile], several[max_several];
        T* out[max_tile_rows];
        for (Index step = 0, until = 0, from = 0; step < rows.steps(); ++step) {
            const Index alive = rows.alive(step);
            if (step == until) {
                from = step;
                until = step + steps_ahead(rows, step);
                const Index ahead = rows.at(until) - rows.at(step);
                if (until > step + 1) {
                    for_share(w, s.groups, s.groups, ahead, t.max_rows, gates, [&](Index g, int, Index r, Index end) {
                        multiply_panel(t, end - r, gates, s.D, kept.xh + (rows.at(step) + r) * s.ld, s.ld, Index(1),
                                       scratch.panels + g * scratch.panel, scratch.bias + g * width, Index(0),
                                       scratch.pre + (g * scratch.ahead + r) * width, width, Index(s.lanes));
                    });
                    // Where two workers share a group, they do not cut it as the steps do.
                    if (s.groups % w.count) w.barrier();
                }
            }
            const bool projected = until > from + 1;
            for_share(w, s.groups, s.groups, alive, t.max_rows, gates, [&](Index g, int, Index begin, Index end) {
                const T* panel = scratch.panels + g * scratch.panel;
                const Index unit = g * s.lanes;
                const int height = tile_height(end - begin, t.max_rows[gates]);
                for (Index r = begin; r < end; r += height) {
                    const int count = static_cast<int>(std::min<Index>(height, end - r));
                    const Index row = rows.at(step) + r;
                    const T* xh = kept.xh + row * s.ld;
                    const T* a = tile;
                    Index lda = width;
                    if (in_place && s.valid(g) == s.lanes) {
                        const Index j = (g - mine.begin) % max_vectors;
                        const int groups = whole_groups(s, g, mine.end);
                        lda = max_vectors * width;
                        if (j == 0) {
                            gates_in_place(s, g, groups, gates, count, s.D, xh, Wx, scratch.bias + g * width, Index(0),
                                           width, several, lda, width);
                            gates_in_place(s, g, groups, gates, count, s.H, xh + s.D, Wh, several, lda, width, several,
                                           lda, width);
                        }
                        a = several + j * width;
                    } else if (projected) {
                        t.tile(count, gates, s.H, xh + s.D, s.ld, 1, panel + packed(t, s.D, width),
                               scratch.pre + (g * scratch.ahead + row - rows.at(from)) * width, width, s.lanes, tile,
                               width, s.lanes);
                    } else {
                        multiply_both(t, s, count, gates, xh, panel, scratch.bias + g * width, tile);
                    }
                    h_rows(s, rows, step, r, count, unit, h, out);
                    const int going_on = static_cast<int>(std::clamp<Index>(rows.alive(step + 1) - r, 0, count));
                    T* next = going_on ? kept.xh + (rows.at(step + 1) + r) * s.ld + s.D + unit : nullptr;
                    const Step<T> part = {count, 1, s.valid(g), a, lda, out, next, s.ld, going_on};
                    t.lstm_forward(part, kept.before(s, rows, step, r) + unit, kept.c + (s.N + row) * s.units + unit,
                                   s.units, kept.saved + row * kept.ld_gates + g * width, kept.ld_gates);
                }
            });
            w.barrier();
        }

        final_states(w, s, rows, h0, h, h_n);
        for (Index r = sequences.begin; r < sequences.end; ++r)
            std::copy_n(kept.before(s, rows, rows.length(r), r), s.H, c_n + rows.sequence(r) * s.H);
    });
}

template <class T>
void lstm_backward(Sequence sequence, Cube<T> dh, Matrix<T> dh_n, Matrix<T> dc_n, Matrix<T> Wx, Matrix<T> Wh,
                   const T* reserve, T* workspace, T* dx, T* dh0, T* dc0, Result<T> dWx, Result<T> dWh, T* db) {
    const Table<T>& t = product_table<T>();
    const Shape<T> s(sequence);
    const Kept<T> kept(s, reserve);
    const BackwardScratch<T> scratch(s, kept.ld_gates, workspace);
    const Rows rows(sequence, scratch.indices);
    const Index width = gates * s.lanes, K = gates * s.units, ld = kept.ld_gates;
    const double operations = 4.0 * rows.total() * (s.D + s.H) * gates * s.H;

    run(threads_for(operations, s.groups), [&](const Worker& w) {
        const Index panels = unit_panels(s.groups, w);
        const Range sequences = share(s.N, w);
        const auto panel_at = [&](Index g) { return scratch.panels + g * s.lanes * K; };
        pack_recurrent(w, t, s, panels, gates, Wh, panel_at);
        for (Index r = sequences.begin; r < sequences.end; ++r)
            final_gradients(rows, r, 1, Index(0), s.units, s.H, dc_n, scratch.dc + r * s.units);
        w.barrier();

        T tile[max_tile], outside[max_tile];
        const T* out[max_tile_rows];
        for (Index step = rows.steps() - 1; step >= 0; --step) {
            const Index going_on = rows.alive(step + 1);
            for_share(w, s.groups, panels, rows.alive(step), t.max_rows, 1, [&](Index g, int n, Index r, Index end) {
                const Index unit = g * s.lanes, columns = Index(n) * s.lanes;
                // First the rows that have a next step, then those whose last step this is.
                while (r < end) {
                    const bool ends = r >= going_on;
                    const int count = tile_height((ends ? end : std::min(end, going_on)) - r, t.max_rows[n]);
                    const Index row = rows.at(step) + r;
                    if (ends)
                        final_gradients(rows, r, count, unit, columns, s.H, dh_n, tile);
                    else
                        t.tile(count, n, K, scratch.da + (rows.at(step + 1) + r) * ld, ld, 1, panel_at(g), nullptr, 0,
                               0, tile, columns, s.lanes);
                    dh_rows(rows, step, r, count, unit, columns, s.H, dh, outside, out);
                    const Step<T> part = {count, n, s.valid(g + n - 1), tile, columns, nullptr, nullptr, 0, 0};
                    t.lstm_backward(part, out, kept.before(s, rows, step, r) + unit,
                                    kept.c + (s.N + row) * s.units + unit, s.units, kept.saved + row * ld + g * width,
                                    ld, scratch.dc + r * s.units + unit, s.units, scratch.da + row * ld + g * width);
                    r += count;
                }
            });
            w.barrier();
        }

        const Index started = rows.alive(0);
        for_share(w, s.groups, panels, s.N, t.max_rows, 1, [&](Index g, int n, Index r, Index end) {
            const Index unit = g * s.lanes, columns = Index(n) * s.lanes, units = std::min(columns, s.H - unit);
            while (r < end) {
                const bool never = r >= started;
                const int count = tile_height((never ? end : std::min(end, started)) - r, t.max_rows[n]);
                if (never)
                    final_gradients(rows, r, count, unit, columns, s.H, dh_n, tile);
                else
                    t.tile(count, n, K, scratch.da + r * ld, ld, 1, panel_at(g), nullptr, 0, 0, tile, columns, s.lanes);
                for (int i = 0; i < count; ++i) {
                    const Index to = rows.sequence(r + i) * s.H + unit;
                    std::copy_n(tile + i * columns, units, dh0 + to);
                    std::copy_n(scratch.dc + (r + i) * s.units + unit, units, dc0 + to);
                }
                r += count;
            }
        });

        weight_gradients(w, t, s, rows.total(), kept.xh, scratch.da, ld, gates, scratch.left, scratch.spill, dWx, dWh,
                         db);
        T chunk[row_chunk * max_vectors * 16];
        input_gradient(w, t, s, rows, scratch.da, ld, gates, Wx,
                       scratch.dx_panel + share(ceil_div(s.D, s.lanes), w).begin * s.lanes * K, chunk, dx);
    });
}

template BufferSizes lstm_buffers<float>(Index, Index, Index, Index);
template void lstm_forward<float>(Sequence, Cube<float>, Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                                  Vec<float>, float*, float*, float*, float*, float*);
template void lstm_backward<float>(Sequence, Cube<float>, Matrix<float>, Matrix<float>, Matrix<float>, Matrix<float>,
                                   const float*, float*, float*, float*, float*, Result<float>, Result<float>, float*);
template BufferSizes lstm_buffers<double>(Index, Index, Index, Index);
template void lstm_forward<double>(Sequence, Cube<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                                   Matrix<double>, Vec<double>, double*, double*, double*, double*, double*);
template void lstm_backward<double>(Sequence, Cube<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                                    Matrix<double>, const double*, double*, double*, double*, double*, Result<double>,
                                    Result<double>, double*);

}  // namespace fastrnn::cpu
