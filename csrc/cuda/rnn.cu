// Vanilla RNN over whole sequences: the cell of recurrent.cuh's time loop.
#include "recurrent.cuh"

namespace fastrnn::cuda {

namespace {

using namespace recurrent;

// reserve: pre-activations and then h (R,H), h_prev (R,H).
template <class T>
struct RnnForward {
    static constexpr int columns = 1;
    static constexpr bool along_k = false;
    Steps steps;
    Index H;
    Matrix<T> h0, Wh;
    Vec<T> b;
    T *h, *h_state;  // the state is h_n, which is so when the loop ends
    T *saved, *h_prev;

    struct Inputs {
        T pre, h;
        Index at;  // n T + t
        bool runs;
    };
    struct Outputs {
        T h;
    };

    __host__ __device__ __forceinline__ Index depth() const { return H; }
    __device__ __forceinline__ T weight(Index k, Index unit, int) const { return Wh(k, unit); }
    __device__ __forceinline__ T initial(Index row, Index k) const { return h0(row, k); }
    __device__ __forceinline__ void begin(Index row, Index unit) const { h_state[row * H + unit] = h0(row, unit); }
    __device__ __forceinline__ bool multiplies(Index) const { return true; }

    __device__ __forceinline__ Inputs load(Index step, Index row, Index unit) const {
        const Index t = steps.forward(step), at = row * steps.T + t;
        return {saved[at * H + unit] + b(unit), h_state[row * H + unit], at, steps.runs(row, t)};
    }
    __device__ __forceinline__ Outputs finish(const Inputs& in, const T (&sums)[1]) const {
        return {in.runs ? tanh(Number<T>{in.pre + sums[0]}).x : in.h};
    }
    template <class E>
    __device__ __forceinline__ void pass_on(typename E::Word* row, const Outputs& out, Index unit) const {
        E::put_state(row, unit, out.h);
    }
    __device__ __forceinline__ void store(Index, Index row, Index unit, const Inputs& in, const Outputs& out) const {
        saved[in.at * H + unit] = out.h;
        h[in.at * H + unit] = in.runs ? out.h : T(0);
        h_prev[in.at * H + unit] = in.runs ? in.h : T(0);
        h_state[row * H + unit] = out.h;
    }
};

// One step more than there are: the last only hands the gradient on to dh0.
template <class T>
struct RnnBackward {
    static constexpr int columns = 1;
    static constexpr bool along_k = true;
    Steps steps;
    Index H;
    Cube<T> dh;
    Matrix<T> dh_n, Wh;
    const T* saved;
    T *da, *dh_state;  // the state is dh0; only what passes steps that are not run

    struct Inputs {
        T h, dh, dh_state;
        Index at;
        bool runs, ran, exists;  // this step; the one that was run before, which is later in forward's order
    };
    struct Outputs {
        T da, dh_state;
    };

    __host__ __device__ __forceinline__ Index depth() const { return H; }
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
        in.h = in.runs ? saved[in.at * H + unit] : T(0);
        in.dh = in.runs ? dh.at(row, t)[unit * dh.s2] : T(0);
        in.dh_state = dh_state[row * H + unit];
        return in;
    }
    __device__ __forceinline__ Outputs finish(const Inputs& in, const T (&sums)[1]) const {
        using V = Number<T>;
        const T through = in.ran ? sums[0] : in.dh_state;
        if (!in.runs) return {T(0), through};
        return {rnn_cell_backward(V{in.h}, V{in.dh + through}, V{T(1)}).x, through};
    }
    template <class E>
    __device__ __forceinline__ void pass_on(typename E::Word* row, const Outputs& out, Index unit) const {
        E::put_state(row, unit, out.da);
    }
    __device__ __forceinline__ void store(Index, Index row, Index unit, const Inputs& in, const Outputs& out) const {
        if (in.exists) da[in.at * H + unit] = out.da;
        dh_state[row * H + unit] = out.dh_state;
    }
};

}  // namespace

// For all three rows.
Error recurrent::current_limits(Limits& limits) {
    Device device{};
    const cudaError_t error = current_device(device);
    limits = {device.sms, device.shared, device.major, device.minor};
    return error;
}

template <class T>
Error rnn_buffers(Index N, Index steps, Index H, BufferSizes& sizes) {
    return buffers<T>(N, steps, H, 1, 2 * H, H, sizes);
}

template <class T>
Error rnn_forward(Stream stream, Precision precision, Sequence s, Matrix<T> h0, Matrix<T> Wh, Vec<T> b, T* h, T* h_n,
                  T* reserve, T* workspace) {
    const RnnForward<T> task{steps_of(s), s.H, h0, Wh, b, h, h_n, reserve, reserve + s.N * s.T * s.H};
    return run_forward(stream, precision, task, s, workspace);
}

template <class T>
Error rnn_backward(Stream stream, Precision precision, Sequence s, Cube<T> dh, Matrix<T> dh_n, Matrix<T> Wh,
                   const T* reserve, T* workspace, T* dh0, T* db) {
    const Index R = s.N * s.T;
    const RnnBackward<T> task{steps_of(s), s.H, dh, dh_n, Wh, reserve, workspace, dh0};
    const cudaError_t error = run_backward(stream, precision, task, s, workspace + aligned<T>(R * s.H));
    if (error != cudaSuccess) return error;
    return column_sums(static_cast<cudaStream_t>(stream), R, s.H, workspace, db);
}

template Error rnn_buffers<float>(Index, Index, Index, BufferSizes&);
template Error rnn_buffers<double>(Index, Index, Index, BufferSizes&);
template Error rnn_forward<float>(Stream, Precision, Sequence, Matrix<float>, Matrix<float>, Vec<float>, float*, float*,
                                  float*, float*);
template Error rnn_forward<double>(Stream, Precision, Sequence, Matrix<double>, Matrix<double>, Vec<double>, double*,
                                   double*, double*, double*);
template Error rnn_backward<float>(Stream, Precision, Sequence, Cube<float>, Matrix<float>, Matrix<float>, const float*,
                                   float*, float*, float*);
template Error rnn_backward<double>(Stream, Precision, Sequence, Cube<double>, Matrix<double>, Matrix<double>,
                                    const double*, double*, double*, double*);

}  // namespace fastrnn::cuda
