// GRU over whole sequences, in the form whose reset gate acts after the recurrent product (cuDNN's and PyTorch's).
//
// As lstm.cpp, with one difference: the candidate's input and recurrent parts meet only after the reset gate, so the
// input part of all three gates is always projected ahead, and the panel of a step is the recurrent part alone.

#include "recurrent.h"

namespace fastrnn::cpu {

namespace {

constexpr int gates = 3;
constexpr int saved_gates = 4;  // r, z, n and the recurrent part of n

// reserve
template <class T>
struct Kept {
    Index ld_saved;
    T *xh, *saved;  // xh (R, ld); saved (R, ld_saved)
    Index used;

    Kept(const Shape<T>& s, const T* memory) {
        Carver<T> carve(memory);
        ld_saved = padded_row<T>(saved_gates * s.units);
        xh = carve.take(s.most_rows() * s.ld);
        saved = carve.take(s.most_rows() * ld_saved);
        used = carve.used();
    }
};

template <class T>
struct ForwardScratch {
    Index* indices;
    T *panels, *bias, *pre;  // panels: groups x (D + H, 3 lanes); bias: of b, then of bh; pre: as in lstm.cpp
    Index panel, ahead, used;

    ForwardScratch(const Shape<T>& s, T* memory) {
        Carver<T> carve(memory);
        const Index width = gates * s.lanes;
        panel = s.weight_rows() * width;
        ahead = std::min(projected_rows + s.N, s.most_rows());
        indices = carve.take_indices(Rows::indices(s.N, s.steps));
        panels = carve.take(s.groups * panel);
        bias = carve.take(2 * s.groups * width);
        pre = carve.take(s.groups * ahead * width);
        used = carve.used();
    }
};

template <class T>
struct BackwardScratch {
    Index* indices;
    Index ld_da;
    T *panels, *dax, *dah, *dh, *left, *spill, *dx_panel;
    Index used;

    BackwardScratch(const Shape<T>& s, T* memory) {
        Carver<T> carve(memory);
        ld_da = padded_row<T>(gates * s.units);
        indices = carve.take_indices(Rows::indices(s.N, s.steps));
        panels = carve.take(s.groups * s.lanes * gates * s.units);
        dax = carve.take(s.most_rows() * ld_da);
        dah = carve.take(s.most_rows() * ld_da);
        dh = carve.take(s.N * s.units);
        left = carve.take(gradient_left(s));
        spill = carve.take(gradient_spill(s, gates));
        dx_panel = carve.take(ceil_div(s.D, s.lanes) * s.lanes * gates * s.units);
        used = carve.used();
    }
};

}  // namespace

template <class T>
BufferSizes gru_buffers(Index N, Index steps, Index D, Index H) {
    const Shape<T> s(N, steps, D, H);
    return {Kept<T>(s, nullptr).used, ForwardScratch<T>(s, nullptr).used, BackwardScratch<T>(s, nullptr).used};
}

template <class T>
void gru_forward(Sequence sequence, Cube<T> x, Matrix<T> h0, Matrix<T> Wx, Matrix<T> Wh, Vec<T> b, Vec<T> bh, T* h,
                 T* h_n, T* reserve, T* workspace) {
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
        T* bias_h = scratch.bias + s.groups * width;
        gather_inputs(w, s, rows, x, h0, kept.xh, h);
        for (Index g = mine.begin; g < mine.end; ++g) {
            const Columns c = gate_columns(s, gates, g);
            T* panel = scratch.panels + g * scratch.panel;
            interleave_bias(s, g, gates, b, scratch.bias + g * width);
            interleave_bias(s, g, gates, bh, bias_h + g * width);
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
                for_share(w, s.groups, s.groups, ahead, t.max_rows, gates, [&](Index g, int, Index r, Index end) {
                    T* pre = scratch.pre + (g * scratch.ahead + r) * width;
                    if (in_place && s.valid(g) == s.lanes) {
                        if ((g - mine.begin) % max_vectors == 0)
                            gates_in_place(s, g, whole_groups(s, g, mine.end), gates, static_cast<int>(alive), s.D,
                                           kept.xh, Wx, scratch.bias + g * width, Index(0), width, pre, width,
                                           scratch.ahead * width);
                    } else
                        multiply_panel(t, end - r, gates, s.D, kept.xh + (rows.at(step) + r) * s.ld, s.ld, Index(1),
                                       scratch.panels + g * scratch.panel, scratch.bias + g * width, Index(0), pre,
                                       width, Index(s.lanes));
                });
                // Where two workers share a group, they do not cut it as the steps do.
                if (s.groups % w.count) w.barrier();
            }
            for_share(w, s.groups, s.groups, alive, t.max_rows, gates, [&](Index g, int, Index begin, Index end) {
                const T* panel = scratch.panels + g * scratch.panel + packed(t, s.D, width);
                const int height = tile_height(end - begin, t.max_rows[gates]);
                for (Index r = begin; r < end; r += height) {
                    const int count = static_cast<int>(std::min<Index>(height, end - r));
                    const Index row = rows.at(step) + r, unit = g * s.lanes;
                    const T* h_before = kept.xh + row * s.ld + s.D;
                    const T* a = tile;
                    Index lda = width;
                    if (in_place && s.valid(g) == s.lanes) {
                        const Index j = (g - mine.begin) % max_vectors;
                        lda = max_vectors * width;
                        if (j == 0)
                            gates_in_place(s, g, whole_groups(s, g, mine.end), gates, count, s.H, h_before, Wh,
                                           bias_h + g * width, Index(0), width, several, lda, width);
                        a = several + j * width;
                    } else
                        t.tile(count, gates, s.H, h_before, s.ld, 1, panel, bias_h + g * width, 0, s.lanes, tile, width,
                               s.lanes);
                    h_rows(s, rows, step, r, count, unit, h, out);
                    const int going_on = static_cast<int>(std::clamp<Index>(rows.alive(step + 1) - r, 0, count));
                    T* next = going_on ? kept.xh + (rows.at(step + 1) + r) * s.ld + s.D + unit : nullptr;
                    const Step<T> part = {count, 1, s.valid(g), a, lda, out, next, s.ld, going_on};
                    t.gru_forward(part, scratch.pre + (g * scratch.ahead + row - rows.at(from)) * width, width,
                                  h_before + unit, s.ld, kept.saved + row * kept.ld_saved + g * saved_gates * s.lanes,
                                  kept.ld_saved);
                }
            });
            w.barrier();
        }
        final_states(w, s, rows, h0, h, h_n);
    });
}

template <class T>
void gru_backward(Sequence sequence, Cube<T> dh, Matrix<T> dh_n, Matrix<T> Wx, Matrix<T> Wh, const T* reserve,
                  T* workspace, T* dx, T* dh0, Result<T> dWx, Result<T> dWh, T* db, T* dbh) {
    const Table<T>& t = product_table<T>();
    const Shape<T> s(sequence);
    const Kept<T> kept(s, reserve);
    const BackwardScratch<T> scratch(s, workspace);
    const Rows rows(sequence, scratch.indices);
    const Index width = gates * s.lanes, K = gates * s.units, ld = scratch.ld_da;
    const double operations = 4.0 * rows.total() * (s.D + s.H) * gates * s.H;

    run(threads_for(operations, s.groups), [&](const Worker& w) {
        const Index panels = unit_panels(s.groups, w);
        const Range sequences = share(s.N, w);
        const auto panel_at = [&](Index g) { return scratch.panels + g * s.lanes * K; };
        pack_recurrent(w, t, s, panels, gates, Wh, panel_at);
        for (Index r = sequences.begin; r < sequences.end; ++r)
            final_gradients(rows, r, 1, Index(0), s.units, s.H, dh_n, scratch.dh + r * s.units);
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
                    if (!ends)
                        t.tile(count, n, K, scratch.dah + (rows.at(step + 1) + r) * ld, ld, 1, panel_at(g), nullptr, 0,
                               0, tile, columns, s.lanes);
                    dh_rows(rows, step, r, count, unit, columns, s.H, dh, outside, out);
                    const T* through = ends ? nullptr : tile;
                    const Step<T> part = {count, n, s.valid(g + n - 1), through, columns, nullptr, nullptr, 0, 0};
                    t.gru_backward(part, out, kept.xh + row * s.ld + s.D + unit, s.ld,
                                   kept.saved + row * kept.ld_saved + g * saved_gates * s.lanes, kept.ld_saved,
                                   scratch.dh + r * s.units + unit, s.units, scratch.dax + row * ld + g * width,
                                   scratch.dah + row * ld + g * width, ld);
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
                if (!never)
                    t.tile(count, n, K, scratch.dah + r * ld, ld, 1, panel_at(g), scratch.dh + r * s.units + unit,
                           s.units, s.lanes, tile, columns, s.lanes);
                for (int i = 0; i < count; ++i)
                    std::copy_n(never ? scratch.dh + (r + i) * s.units + unit : tile + i * columns, units,
                                dh0 + rows.sequence(r + i) * s.H + unit);
                r += count;
            }
        });

        const Result<T> none{nullptr, 0, 1};
        weight_gradients(w, t, s, rows.total(), kept.xh, scratch.dax, ld, gates, scratch.left, scratch.spill, dWx, none,
                         db);
        weight_gradients(w, t, s, rows.total(), kept.xh, scratch.dah, ld, gates, scratch.left, scratch.spill, none, dWh,
                         dbh);
        T chunk[row_chunk * max_vectors * 16];
        input_gradient(w, t, s, rows, scratch.dax, ld, gates, Wx,
                       scratch.dx_panel + share(ceil_div(s.D, s.lanes), w).begin * s.lanes * K, chunk, dx);
    });
}

template BufferSizes gru_buffers<float>(Index, Index, Index, Index);
template void gru_forward<float>(Sequence, Cube<float>, Matrix<float>, Matrix<float>, Matrix<float>, Vec<float>,
                                 Vec<float>, float*, float*, float*, float*);
template void gru_backward<float>(Sequence, Cube<float>, Matrix<float>, Matrix<float>, Matrix<float>, const float*,
                                  float*, float*, float*, Result<float>, Result<float>, float*, float*);
template BufferSizes gru_buffers<double>(Index, Index, Index, Index);
template void gru_forward<double>(Sequence, Cube<double>, Matrix<double>, Matrix<double>, Matrix<double>, Vec<double>,
                                  Vec<double>, double*, double*, double*, double*);
template void gru_backward<double>(Sequence, Cube<double>, Matrix<double>, Matrix<double>, Matrix<double>,
                                   const double*, double*, double*, double*, Result<double>, Result<double>, double*,
                                   double*);

}  // namespace fastrnn::cpu
