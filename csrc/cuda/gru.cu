// GRU over whole sequences, in the form whose reset gate acts after the recurrent product (cuDNN's and PyTorch's): the
// cell of recurrent.cuh's time loop.
#include "recurrent.cuh"

namespace fastrnn::cuda {

namespace {

using namespace recurrent;

constexpr int gates = 3;

// reserve: pre-activations and then gates (R,3H), h_prev (R,H), hn (R,H): the recurrent part of the candidate.
template <class T>
struct GruForward {
    static constexpr int columns = gates;
    static constexpr bool along_k = false;
    Steps steps;
    Index H;
    Matrix<T> h0, Wh;
    Vec<T> b, bh;
    T *h, *h_state;  // the state is h_n, which is so when the loop ends
    T *saved, *h_prev, *hn;

    struct Inputs {
        T pre[gates], bias[gates], h;
        Index at;  // n T + t
        bool runs;
    };
    struct Outputs {
        T r, z, n, hn, h;
    };

    __host__ __device__ __forceinline__ Index depth() const { return H; }
    __device__ __forceinline__ T weight(Index k, Index unit, int gate) const { return Wh(k, gate * H + unit); }
    __device__ __forceinline__ T initial(Index row, Index k) const { return h0(row, k); }
    __device__ __forceinline__ void begin(Index row, Index unit) const { h_state[row * H + unit] = h0(row, unit); }
    __device__ __forceinline__ bool multiplies(Index) const { return true; }

    __device__ __forceinline__ Inputs load(Index step, Index row, Index unit) const {
        Inputs in;
        const Index t = steps.forward(step);
        in.at = row * steps.T + t;
        in.runs = steps.runs(row, t);
#pragma unroll
        for (int g = 0; g < gates; ++g) {
            in.pre[g] = saved[in.at * gates * H + g * H + unit] + b(g * H + unit);
            in.bias[g] = bh.data ? bh(g * H + unit) : T(0);
        }
        in.h = h_state[row * H + unit];
        return in;
    }
    __device__ __forceinline__ Outputs finish(const Inputs& in, const T (&sums)[gates]) const {
        using V = Number<T>;
        V h;
        const Gru<V> s = gru_cell(V{in.pre[0]}, V{in.pre[1]}, V{in.pre[2]}, V{sums[0] + in.bias[0]},
                                  V{sums[1] + in.bias[1]}, V{sums[2] + in.bias[2]}, V{in.h}, V{T(1)}, h);
        return {s.r.x, s.z.x, s.n.x, s.hn.x, in.runs ? h.x : in.h};
    }
    template <class E>
    __device__ __forceinline__ void pass_on(typename E::Word* row, const Outputs& out, Index unit) const {
        E::put_state(row, unit, out.h);
    }
    __device__ __forceinline__ void store(Index, Index row, Index unit, const Inputs& in, const Outputs& out) const {
        if (in.runs) {
            T* to = saved + in.at * gates * H + unit;
            to[0] = out.r, to[H] = out.z, to[2 * H] = out.n;
            hn[in.at * H + unit] = out.hn;
        }
        h[in.at * H + unit] = in.runs ? out.h : T(0);
        h_prev[in.at * H + unit] = in.runs ? in.h : T(0);
        h_state[row * H + unit] = out.h;
    }
};

// One step more than there are: the last only hands the gradient on to dh0.
template <class T>
struct GruBackward {
    static constexpr int columns = 1;
    static constexpr bool along_k = true;
    Steps steps;
    Index H;
    Cube<T> dh;
    Matrix<T> dh_n, Wh;
    const T *saved, *h_prev, *hn;
    T *dax, *dah, *dh_state;  // the state is dh0: what passes steps that are not run, and past the products

    struct Inputs {
        T r, z, n, hn, h_prev, dh, dh_state;
        Index at;
        bool runs, ran, exists;  // this step; the one that was run before, which is later in forward's order
    };
    struct Outputs {
        T r, z, n, hn, dh_state;
    };

    __host__ __device__ __forceinline__ Index depth() const { return gates * H; }
    __device__ __forceinline__ T weight(Index k, Index unit, int) const { return Wh(unit, k); }
    __device__ __forceinline__ T initial(Index, Index) const { return T(0); }
    __device__ __forceinline__ void begin(Index row, Index unit) const {
        dh_state[row * H + unit] = dh_n.data ? dh_n(row, unit) : T(0);
    }
    __device__ __forceinline__ bool multiplies(Index step) const { return step > 0; }

    __device__ __forceinline__ Inputs load(Index step, Index row, Index unit) const {
        Inputs in;
        const Index t = steps.backward(step);
        in.at = row * steps.T + t;
        in.exists = step < steps.T;
        in.runs = in.exists && steps.runs(row, t);
        in.ran = step > 0 && steps.runs(row, steps.backward(step - 1));
        const T* from = saved + in.at * gates * H + unit;
        in.r = in.runs ? from[0] : T(0);
        in.z = in.runs ? from[H] : T(0);
        in.n = in.runs ? from[2 * H] : T(0);
        in.hn = in.runs ? hn[in.at * H + unit] : T(0);
        in.h_prev = in.runs ? h_prev[in.at * H + unit] : T(0);
        in.dh = in.runs ? dh.at(row, t)[unit * dh.s2] : T(0);
        in.dh_state = dh_state[row * H + unit];
        return in;
    }
    __device__ __forceinline__ Outputs finish(const Inputs& in, const T (&sums)[1]) const {
        using V = Number<T>;
        const T through = in.ran ? sums[0] + in.dh_state : in.dh_state;
        if (!in.runs) return {T(0), T(0), T(0), T(0), through};
        const Gru<V> s{V{in.r}, V{in.z}, V{in.n}, V{in.hn}};
        V past;
        const Gru<V> d = gru_cell_backward(s, V{in.h_prev}, V{in.dh + through}, V{T(1)}, past);
        return {d.r.x, d.z.x, d.n.x, d.hn.x, past.x};
    }
    template <class E>
    __device__ __forceinline__ void pass_on(typename E::Word* row, const Outputs& out, Index unit) const {
        E::put_state(row, unit, out.r);
        E::put_state(row, H + unit, out.z);
        E::put_state(row, 2 * H + unit, out.hn);
    }
    __device__ __forceinline__ void store(Index, Index row, Index unit, const Inputs& in, const Outputs& out) const {
        if (in.exists) {
            const Index at = in.at * gates * H + unit;
            dax[at] = dah[at] = out.r;
            dax[at + H] = dah[at + H] = out.z;
            dax[at + 2 * H] = out.n;
            dah[at + 2 * H] = out.hn;
        }
        dh_state[row * H + unit] = out.dh_state;
    }
};

}  // namespace

template <class T>
Error gru_buffers(Index N, Index steps, Index H, BufferSizes& sizes) {
    return buffers<T>(N, steps, H, gates, 5 * H, 2 * gates * H, sizes);
}

template <class T>
Error gru_forward(Stream stream, Precision precision, Sequence s, Matrix<T> h0, Matrix<T> Wh, Vec<T> b, Vec<T> bh, T* h,
                  T* h_n, T* reserve, T* workspace) {
    const Index R = s.N * s.T;
    T *h_prev = reserve + R * gates * s.H, *hn = h_prev + R * s.H;
    const GruForward<T> task{steps_of(s), s.H, h0, Wh, b, bh, h, h_n, reserve, h_prev, hn};
    return run_forward(stream, precision, task, s, workspace);
}

template <class T>
Error gru_backward(Stream stream, Precision precision, Sequence s, Cube<T> dh, Matrix<T> dh_n, Matrix<T> Wh,
                   const T* reserve, T* workspace, T* dh0, T* db, T* dbh) {
    const Index R = s.N * s.T;
    const T *h_prev = reserve + R * gates * s.H, *hn = h_prev + R * s.H;
    T* dah = workspace + R * gates * s.H;
    const GruBackward<T> task{steps_of(s), s.H, dh, dh_n, Wh, reserve, h_prev, hn, workspace, dah, dh0};
    cudaError_t error = run_backward(stream, precision, task, s, workspace + aligned<T>(2 * R * gates * s.H));
    const auto queue = static_cast<cudaStream_t>(stream);
    if (error == cudaSuccess) error = column_sums(queue, R, gates * s.H, workspace, db);
    if (error == cudaSuccess) error = column_sums(queue, R, gates * s.H, dah, dbh);
    return error;
}

template Error gru_buffers<float>(Index, Index, Index, BufferSizes&);
template Error gru_buffers<double>(Index, Index, Index, BufferSizes&);
template Error gru_forward<float>(Stream, Precision, Sequence, Matrix<float>, Matrix<float>, Vec<float>, Vec<float>,
                                  float*, float*, float*, float*);
template Error gru_forward<double>(Stream, Precision, Sequence, Matrix<double>, Matrix<double>, Vec<double>,
                                   Vec<double>, double*, double*, double*, double*);
template Error gru_backward<float>(Stream, Precision, Sequence, Cube<float>, Matrix<float>, Matrix<float>, const float*,
                                   float*, float*, float*, float*);
template Error gru_backward<double>(Stream, Precision, Sequence, Cube<double>, Matrix<double>, Matrix<double>,
                                    const double*, double*, double*, double*, double*);

}  // namespace fastrnn::cuda
