// Vanilla RNN over whole sequences: h' = tanh(x Wx + h Wh + b).
//
// As lstm.cpp with one gate: a panel is up to four groups of hidden units.

#include "recurrent.h"

namespace fastrnn::cpu {

namespace {

constexpr int gates = 1;

// reserve
template <class T>
struct Kept {
    Index ld_y;
    T *xh, *y;  // xh (R, ld); y (N, ld_y): the hidden state after each sequence's last step
    Index used;

    Kept(const Shape<T>& s, const T* memory) {
        Carver<T> carve(memory);
        ld_y = padded_row<T>(s.units);
        xh = carve.take(s.most_rows() * s.ld);
        y = carve.take(s.N * ld_y);
        used = carve.used();
    }
};

template <class T>
struct ForwardScratch {
    Index* indices;
    T *panels, *bias, *pre;  // panels: (D + H, lanes) for each group; pre: (rows projected ahead, lanes) for each
    Index ahead, used;

    ForwardScratch(const Shape<T>& s, T* memory) {
        Carver<T> carve(memory);
        ahead = std::min(projected_rows + s.N, s.most_rows());
        indices = carve.take_indices(Rows::indices(s.N, s.steps));
        panels = carve.take(s.weight_rows() * s.units);
        bias = carve.take(s.units);
        pre = carve.take(ahead * s.units);
        used = carve.used();
    }
};

template <class T>
struct BackwardScratch {
    Index* indices;
    T *panels, *da, *left, *spill, *dx_panel;
    Index used;

    BackwardScratch(const Shape<T>& s, Index ld_y, T* memory) {
        Carver<T> carve(memory);
        indices = carve.take_indices(Rows::indices(s.N, s.steps));
        panels = carve.take(s.units * s.units);
        da = carve.take(s.most_rows() * ld_y);
        left = carve.take(gradient_left(s));
        spill = carve.take(gradient_spill(s, gates));
        dx_panel = carve.take(ceil_div(s.D, s.lanes) * s.lanes * s.units);
        used = carve.used();
    }
};

}  // namespace

template <class T>
BufferSizes rnn_buffers(Index N, Index steps, Index D, Index H) {
    const Shape<T> s(N, steps, D, H);
    const Kept<T> kept(s, nullptr);
    return {kept.used, ForwardScratch<T>(s, nullptr).used, BackwardScratch<T>(s, kept.ld_y, nullptr).used};
}

template <class T>
void rnn_forward(Sequence sequence, Cube<T> x, Matrix<T> h0, Matrix<T> Wx, Matrix<T> Wh, Vec<T> b, T* h, T* h_n,
                 T* reserve, T* workspace) {
    const Table<T>& t = product_table<T>();
    const Shape<T> s(sequence);
    const Kept<T> kept(s, reserve);
    const ForwardScratch<T> scratch(s, workspace);
    const Rows rows(sequence, scratch.indices);
    const Index depth = s.weight_rows();
    const bool in_place = weights_in_place(s, rows, Wx, Wh);
    const double operations = 2.0 * rows.total() * (s.D + s.H) * s.H;

    run(threads_for(operations, s.groups), [&](const Worker& w) {
        const Index panels = unit_panels(s.groups, w);
        const bool even = panels % w.count == 0 && s.groups % std::max<Index>(panels, 1) == 0;
        const Range to_pack = share(panels, w);
        gather_inputs(w, s, rows, x, h0, kept.xh, h);
        for (Index p = to_pack.begin; p < to_pack.end; ++p) {
            const Index g = panel_start(s.groups, panels, p), end = panel_start(s.groups, panels, p + 1);
            const Columns c = plain_columns(s.H, s.lanes, g, end);
            for (Index i = g; i < end; ++i) interleave_bias(s, i, gates, b, scratch.bias + i * s.lanes);
            if (in_place && s.valid(end - 1) == s.lanes) continue;
            T* panel = scratch.panels + g * s.lanes * depth;
            pack_panel(t, c, s.D, Wx.data, Wx.row, Wx.col, panel);
            pack_panel(t, c, s.H, Wh.data, Wh.row, Wh.col, panel + packed(t, s.D, Index(c.vectors) * s.lanes));
        }
        w.barrier();

        T tile[max_tile];
        T* out[max_tile_rows];
        for (Index step = 0, until = 0, from = 0; step < rows.steps(); ++step) {
            const Index alive = rows.alive(step);
            if (step == until) {
                from = step;
                until = step + steps_ahead(rows, step);
                const Index ahead = rows.at(until) - rows.at(step);
                if (until > step + 1) {
                    for_share(w, s.groups, panels, ahead, t.max_rows, 1, [&](Index g, int n, Index r, Index end) {
                        const Index unit = g * s.lanes, width = Index(n) * s.lanes;
                        multiply_panel(t, end - r, n, s.D, kept.xh + (rows.at(step) + r) * s.ld, s.ld, Index(1),
                                       scratch.panels + unit * depth, scratch.bias + unit, Index(0),
                                       scratch.pre + unit * scratch.ahead + r * width, width, Index(s.lanes));
                    });
                    // Where two workers share a panel, they do not cut it as the steps do.
                    if (!even) w.barrier();
                }
            }
            const bool projected = until > from + 1;
            for_share(w, s.groups, panels, alive, t.max_rows, 1, [&](Index g, int n, Index begin, Index end) {
                const Index unit = g * s.lanes, width = Index(n) * s.lanes;
                const T* panel = scratch.panels + unit * depth;
                const T* pre = scratch.pre + unit * scratch.ahead;
                const int height = tile_height(end - begin, t.max_rows[n]);
                for (Index r = begin; r < end; r += height) {
                    const int count = static_cast<int>(std::min<Index>(height, end - r));
                    const Index row = rows.at(step) + r;
                    const T* xh = kept.xh + row * s.ld;
                    if (in_place && s.valid(g + n - 1) == s.lanes) {
                        t.stream(count, n, s.D, xh, s.ld, Wx.data + unit, Wx.row, s.lanes, scratch.bias + unit, 0,
                                 s.lanes, tile, width, s.lanes);
                        t.stream(count, n, s.H, xh + s.D, s.ld, Wh.data + unit, Wh.row, s.lanes, tile, width, s.lanes,
                                 tile, width, s.lanes);
                    } else if (projected)
                        t.tile(count, n, s.H, xh + s.D, s.ld, 1, panel + packed(t, s.D, width),
                               pre + (row - rows.at(from)) * width, width, s.lanes, tile, width, s.lanes);
                    else
                        multiply_both(t, s, count, n, xh, panel, scratch.bias + unit, tile);
                    h_rows(s, rows, step, r, count, unit, h, out);
                    const int going_on = static_cast<int>(std::clamp<Index>(rows.alive(step + 1) - r, 0, count));
                    T* next = going_on ? kept.xh + (rows.at(step + 1) + r) * s.ld + s.D + unit : nullptr;
                    const Step<T> part = {count, n, s.valid(g + n - 1), tile, width, out, next, s.ld, going_on};
                    t.rnn_forward(part, kept.y + r * kept.ld_y + unit, kept.ld_y);
                }
            });
            w.barrier();
        }
        final_states(w, s, rows, h0, h, h_n);
    });
}

template <class T>
void rnn_backward(Sequence sequence, Cube<T> dh, Matrix<T> dh_n, Matrix<T> Wx, Matrix<T> Wh, const T* reserve,
                  T* workspace, T* dx, T* dh0, Result<T> dWx, Result<T> dWh, T* db) {
    const Table<T>& t = product_table<T>();
    const Shape<T> s(sequence);
    const Kept<T> kept(s, reserve);
    const BackwardScratch<T> scratch(s, kept.ld_y, workspace);
    const Rows rows(sequence, scratch.indices);
    const Index K = s.units, ld = kept.ld_y;
    const double operations = 4.0 * rows.total() * (s.D + s.H) * s.H;

    run(threads_for(operations, s.groups), [&](const Worker& w) {
        const Index panels = unit_panels(s.groups, w);
        const auto panel_at = [&](Index g) { return scratch.panels + g * s.lanes * K; };
        pack_recurrent(w, t, s, panels, gates, Wh, panel_at);
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
                    // The hidden state after a row stands beside the input of the next, as long as there is one.
                    const T* y = ends ? kept.y + r * kept.ld_y : kept.xh + (rows.at(step + 1) + r) * s.ld + s.D;
                    t.rnn_backward(part, out, y + unit, ends ? kept.ld_y : s.ld, scratch.da + row * ld + unit, ld);
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
                for (int i = 0; i < count; ++i)
                    std::copy_n(tile + i * columns, units, dh0 + rows.sequence(r + i) * s.H + unit);
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

template BufferSizes rnn_buffers<float>(Index, Index, Index, Index);
template void rnn_forward<float>(Sequence, Cube<float>, Matrix<float>, Matrix<float>, Matrix<float>, Vec<float>, float*,
                                 float*, float*, float*);
template void rnn_backward<float>(Sequence, Cube<float>, Matrix<float>, Matrix<float>, Matrix<float>, const float*,
                                  float*, float*, float*, Result<float>, Result<float>, float*);
template BufferSizes rnn_buffers<double>(Index, Index, Index, Index);
template void rnn_forward<double>(Sequence, Cube<double>, Matrix<double>, Matrix<double>, Matrix<double>, Vec<double>,
                                  double*, double*, double*, double*);
template void rnn_backward<double>(Sequence, Cube<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                                   const double*, double*, double*, double*, Result<double>, Result<double>, double*);

}  // namespace fastrnn::cpu
