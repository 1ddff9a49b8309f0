// fastrnn._cpu: the C++ kernels as Python functions over NumPy arrays. The only file that knows pybind11 (and
// csrc/cuda's counterpart). Arguments were checked in fastrnn/ops; here arrays become pointers and strides, and the GIL
// is released.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "cpu/isa.h"
#include "cpu/team.h"
#include "kernels.h"

namespace py = pybind11;

namespace fastrnn {
namespace {

// The GIL, given back while a kernel runs. pybind11's own guard ends the process if the interpreter shuts down
// meanwhile: Python up to 3.13 then ends each thread that asks for the GIL, by unwinding its stack, which a destructor
// may not let through. Such a thread, a daemon's, waits here for the end of the process, as Python 3.14 lets it do by
// itself.
class WithoutGil {
  public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;
    ~WithoutGil() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }

  private:
    PyThreadState* state_;
};

using Array = py::array;
using Optional = py::object;  // an array or None

// An array that does not have the dtype that a kernel reads would be memory misread: the one check made here, against
// callers who bypass fastrnn/ops.
template <class T>
const T* pointer(const Array& a) {
    if (!py::isinstance<py::array_t<T>>(a))
        throw py::type_error("fastrnn._cpu: arrays of one call must have one dtype");
    return static_cast<const T*>(a.data());
}
template <class T>
Index stride(const Array& a, int axis) {
    return static_cast<Index>(a.strides(axis)) / static_cast<Index>(sizeof(T));
}
template <class T>
Vec<T> vec(const Array& a) {
    return {pointer<T>(a), stride<T>(a, 0)};
}
template <class T>
Matrix<T> matrix(const Array& a) {
    return {pointer<T>(a), stride<T>(a, 0), stride<T>(a, 1)};
}
template <class T>
Cube<T> cube(const Array& a) {
    return {pointer<T>(a), stride<T>(a, 0), stride<T>(a, 1), stride<T>(a, 2)};
}
template <class T>
Vec<T> optional_vec(const Optional& a) {
    return a.is_none() ? Vec<T>{nullptr, 0} : vec<T>(py::reinterpret_borrow<Array>(a));
}
template <class T>
Matrix<T> optional_matrix(const Optional& a) {
    return a.is_none() ? Matrix<T>{nullptr, 0, 0} : matrix<T>(py::reinterpret_borrow<Array>(a));
}
template <class T>
T* output(const Array& a) {
    return const_cast<T*>(pointer<T>(a));
}

template <class T>
Result<T> result(const Array& a) {
    const Matrix<T> m = matrix<T>(a);
    return {const_cast<T*>(m.data), m.row, m.col};
}

Sequence sequence(const Array& x, const Array& h0, const Optional& lengths, bool reverse, bool swapped = false) {
    const Index* steps = lengths.is_none() ? nullptr : pointer<Index>(py::reinterpret_borrow<Array>(lengths));
    return {x.shape(0), x.shape(1), x.shape(2), h0.shape(1), steps, reverse, swapped};
}

// Calls f with a float or a double to tell the type of the arrays, like `like`'s.
template <class F>
void by_dtype(const Array& like, F&& f) {
    if (like.itemsize() == 4)
        f(float());
    else
        f(double());
}

py::tuple sizes(const BufferSizes& b) {
    return py::make_tuple(b.reserve, b.forward, b.backward);
}

template <BufferSizes (*F32)(Index, Index, Index, Index), BufferSizes (*F64)(Index, Index, Index, Index)>
py::tuple recurrent_buffers(Index N, Index T, Index D, Index H, Index itemsize) {
    return sizes(itemsize == 4 ? F32(N, T, D, H) : F64(N, T, D, H));
}

void rnn_forward(Array x, Array h0, Array Wx, Array Wh, Array b, Optional lengths, bool reverse, Array h, Array h_n,
                 Array reserve, Array workspace) {
    by_dtype(x, [&](auto like) {
        using T = decltype(like);
        const Sequence s = sequence(x, h0, lengths, reverse);
        const auto x_ = cube<T>(x);
        const auto h0_ = matrix<T>(h0), Wx_ = matrix<T>(Wx), Wh_ = matrix<T>(Wh);
        const auto b_ = vec<T>(b);
        T *h_ = output<T>(h), *h_n_ = output<T>(h_n), *reserve_ = output<T>(reserve),
          *workspace_ = output<T>(workspace);
        const WithoutGil nogil;
        cpu::rnn_forward(s, x_, h0_, Wx_, Wh_, b_, h_, h_n_, reserve_, workspace_);
    });
}

void rnn_backward(Array dh, Optional dh_n, Array x, Array h0, Array Wx, Array Wh, Optional lengths, bool reverse,
                  Array reserve, Array workspace, Array dx, Array dh0, Array dWx, Array dWh, Array db) {
    by_dtype(x, [&](auto like) {
        using T = decltype(like);
        const Sequence s = sequence(x, h0, lengths, reverse);
        const auto dh_ = cube<T>(dh);
        const auto dh_n_ = optional_matrix<T>(dh_n), Wx_ = matrix<T>(Wx), Wh_ = matrix<T>(Wh);
        const T* reserve_ = pointer<T>(reserve);
        T *workspace_ = output<T>(workspace), *dx_ = output<T>(dx), *dh0_ = output<T>(dh0), *db_ = output<T>(db);
        const auto dWx_ = result<T>(dWx), dWh_ = result<T>(dWh);
        const WithoutGil nogil;
        cpu::rnn_backward(s, dh_, dh_n_, Wx_, Wh_, reserve_, workspace_, dx_, dh0_, dWx_, dWh_, db_);
    });
}

// swapped: gates i, f, g, o, as PyTorch has them, instead of i, f, o, g.
template <bool swapped>
void lstm_forward(Array x, Array h0, Optional c0, Array Wx, Array Wh, Array b, Optional lengths, bool reverse, Array h,
                  Array h_n, Array c_n, Array reserve, Array workspace) {
    by_dtype(x, [&](auto like) {
        using T = decltype(like);
        const Sequence s = sequence(x, h0, lengths, reverse, swapped);
        const auto x_ = cube<T>(x);
        const auto h0_ = matrix<T>(h0), c0_ = optional_matrix<T>(c0), Wx_ = matrix<T>(Wx), Wh_ = matrix<T>(Wh);
        const auto b_ = vec<T>(b);
        T *h_ = output<T>(h), *h_n_ = output<T>(h_n), *c_n_ = output<T>(c_n), *reserve_ = output<T>(reserve),
          *workspace_ = output<T>(workspace);
        const WithoutGil nogil;
        cpu::lstm_forward(s, x_, h0_, c0_, Wx_, Wh_, b_, h_, h_n_, c_n_, reserve_, workspace_);
    });
}

template <bool swapped>
void lstm_backward(Array dh, Optional dh_n, Optional dc_n, Array x, Array h0, Optional /*c0*/, Array Wx, Array Wh,
                   Optional lengths, bool reverse, Array reserve, Array workspace, Array dx, Array dh0, Array dc0,
                   Array dWx, Array dWh, Array db) {
    by_dtype(x, [&](auto like) {
        using T = decltype(like);
        const Sequence s = sequence(x, h0, lengths, reverse, swapped);
        const auto dh_ = cube<T>(dh);
        const auto dh_n_ = optional_matrix<T>(dh_n), dc_n_ = optional_matrix<T>(dc_n), Wx_ = matrix<T>(Wx),
                   Wh_ = matrix<T>(Wh);
        const T* reserve_ = pointer<T>(reserve);
        T *workspace_ = output<T>(workspace), *dx_ = output<T>(dx), *dh0_ = output<T>(dh0), *dc0_ = output<T>(dc0),
          *db_ = output<T>(db);
        const auto dWx_ = result<T>(dWx), dWh_ = result<T>(dWh);
        if (swapped && ((dWx_.row != 1 && x.shape(2) > 1) || (dWh_.row != 1 && h0.shape(1) > 1)))
            throw py::type_error("fastrnn._cpu: lstm_backward_ifgo: dWx and dWh must have a row stride of 1");
        const WithoutGil nogil;
        cpu::lstm_backward(s, dh_, dh_n_, dc_n_, Wx_, Wh_, reserve_, workspace_, dx_, dh0_, dc0_, dWx_, dWh_, db_);
    });
}

void gru_forward(Array x, Array h0, Array Wx, Array Wh, Array b, Optional bh, Optional lengths, bool reverse, Array h,
                 Array h_n, Array reserve, Array workspace) {
    by_dtype(x, [&](auto like) {
        using T = decltype(like);
        const Sequence s = sequence(x, h0, lengths, reverse);
        const auto x_ = cube<T>(x);
        const auto h0_ = matrix<T>(h0), Wx_ = matrix<T>(Wx), Wh_ = matrix<T>(Wh);
        const auto b_ = vec<T>(b), bh_ = optional_vec<T>(bh);
        T *h_ = output<T>(h), *h_n_ = output<T>(h_n), *reserve_ = output<T>(reserve),
          *workspace_ = output<T>(workspace);
        const WithoutGil nogil;
        cpu::gru_forward(s, x_, h0_, Wx_, Wh_, b_, bh_, h_, h_n_, reserve_, workspace_);
    });
}

void gru_backward(Array dh, Optional dh_n, Array x, Array h0, Array Wx, Array Wh, Optional /*bh*/, Optional lengths,
                  bool reverse, Array reserve, Array workspace, Array dx, Array dh0, Array dWx, Array dWh, Array db,
                  Array dbh) {
    by_dtype(x, [&](auto like) {
        using T = decltype(like);
        const Sequence s = sequence(x, h0, lengths, reverse);
        const auto dh_ = cube<T>(dh);
        const auto dh_n_ = optional_matrix<T>(dh_n), Wx_ = matrix<T>(Wx), Wh_ = matrix<T>(Wh);
        const T* reserve_ = pointer<T>(reserve);
        T *workspace_ = output<T>(workspace), *dx_ = output<T>(dx), *dh0_ = output<T>(dh0), *db_ = output<T>(db),
          *dbh_ = output<T>(dbh);
        const auto dWx_ = result<T>(dWx), dWh_ = result<T>(dWh);
        const WithoutGil nogil;
        cpu::gru_backward(s, dh_, dh_n_, Wx_, Wh_, reserve_, workspace_, dx_, dh0_, dWx_, dWh_, db_, dbh_);
    });
}

void word_embedding_forward(Array ids, Array W, Array out) {
    by_dtype(W, [&](auto like) {
        using T = decltype(like);
        const auto ids_ = vec<Index>(ids);
        const auto W_ = matrix<T>(W);
        T* out_ = output<T>(out);
        const Index n = ids.shape(0), D = W.shape(1);
        const WithoutGil nogil;
        cpu::word_embedding_forward(n, D, ids_, W_, out_);
    });
}

void word_embedding_backward(Array ids, Array dout, Array workspace, Array dW, bool add) {
    by_dtype(dW, [&](auto like) {
        using T = decltype(like);
        const auto ids_ = vec<Index>(ids);
        const auto dout_ = matrix<T>(dout), to = matrix<T>(dW);
        T* dW_ = output<T>(dW);
        Index* workspace_ = output<Index>(workspace);
        const Index n = ids.shape(0), V = dW.shape(0), D = dW.shape(1);
        const WithoutGil nogil;
        cpu::word_embedding_backward(n, V, D, ids_, dout_, workspace_, dW_, to.row, to.col, add);
    });
}

Index word_embedding_sort(Array ids, Index V, Index D, Index itemsize, Array workspace) {
    const auto ids_ = vec<Index>(ids);
    Index* workspace_ = output<Index>(workspace);
    const Index n = ids.shape(0);
    const WithoutGil nogil;
    return cpu::word_embedding_sort(n, V, D, itemsize, ids_, workspace_);
}

void word_embedding_sparse(Array dout, Index V, Array workspace, Array rows, Array values) {
    by_dtype(values, [&](auto like) {
        using T = decltype(like);
        const auto dout_ = matrix<T>(dout);
        Index *workspace_ = output<Index>(workspace), *rows_ = output<Index>(rows);
        T* values_ = output<T>(values);
        const Index n = dout.shape(0), D = values.shape(1), k = values.shape(0);
        const WithoutGil nogil;
        cpu::word_embedding_sparse(n, V, D, dout_, workspace_, k, rows_, values_);
    });
}

py::tuple affine_buffers(Index N, Index D, Index M, Index itemsize) {
    const BufferSizes b = itemsize == 4 ? cpu::affine_buffers<float>(N, D, M) : cpu::affine_buffers<double>(N, D, M);
    return py::make_tuple(b.forward, b.backward);
}

void affine_forward(Array x, Array w, Array b, Array workspace, Array out) {
    by_dtype(x, [&](auto like) {
        using T = decltype(like);
        const auto x_ = matrix<T>(x), w_ = matrix<T>(w);
        const auto b_ = vec<T>(b);
        T *workspace_ = output<T>(workspace), *out_ = output<T>(out);
        const Index N = x.shape(0), D = x.shape(1), M = w.shape(1);
        const WithoutGil nogil;
        cpu::affine_forward(N, D, M, x_, w_, b_, workspace_, out_);
    });
}

void affine_backward(Array dout, Array x, Array w, Array workspace, Array dx, Array dw, Array db) {
    by_dtype(x, [&](auto like) {
        using T = decltype(like);
        const auto dout_ = matrix<T>(dout), x_ = matrix<T>(x), w_ = matrix<T>(w);
        T *workspace_ = output<T>(workspace), *dx_ = output<T>(dx), *dw_ = output<T>(dw), *db_ = output<T>(db);
        const Index N = x.shape(0), D = x.shape(1), M = w.shape(1);
        const WithoutGil nogil;
        cpu::affine_backward(N, D, M, dout_, x_, w_, workspace_, dx_, dw_, db_);
    });
}

void temporal_softmax_loss(Array x, Array y, Array mask, Index count, Array row_loss, Array dx) {
    by_dtype(x, [&](auto like) {
        using T = decltype(like);
        const auto x_ = matrix<T>(x);
        const auto y_ = vec<Index>(y);
        const Vec<unsigned char> mask_ = {static_cast<const unsigned char*>(mask.data()), mask.strides(0)};
        double* row_loss_ = output<double>(row_loss);
        T* dx_ = output<T>(dx);
        const Index R = x.shape(0), V = x.shape(1);
        const WithoutGil nogil;
        cpu::temporal_softmax_loss(R, V, x_, y_, mask_, count, row_loss_, dx_);
    });
}

py::tuple vocab_softmax_loss_buffers(Index R, Index H, Index V, Index itemsize) {
    const BufferSizes b = itemsize == 4 ? cpu::vocab_softmax_loss_buffers<float>(R, H, V)
                                        : cpu::vocab_softmax_loss_buffers<double>(R, H, V);
    return py::make_tuple(b.backward);
}

void vocab_softmax_loss(Array h, Array W, Array b, Array y, Array mask, Array workspace, Array loss, Array dh, Array dW,
                        Array db) {
    by_dtype(h, [&](auto like) {
        using T = decltype(like);
        const auto h_ = cube<T>(h);
        const auto W_ = matrix<T>(W);
        const auto b_ = vec<T>(b);
        const auto y_ = vec<Index>(y);
        const Vec<unsigned char> mask_ = {static_cast<const unsigned char*>(mask.data()), mask.strides(0)};
        double* loss_ = output<double>(loss);
        const auto dW_ = result<T>(dW);
        T *workspace_ = output<T>(workspace), *dh_ = output<T>(dh), *db_ = output<T>(db);
        const Index N = h.shape(0), steps = h.shape(1), H = h.shape(2), V = W.shape(1);
        const WithoutGil nogil;
        cpu::vocab_softmax_loss(N, steps, H, V, h_, W_, b_, y_, mask_, workspace_, loss_, dh_, dW_, db_);
    });
}

py::tuple gram_buffers(Index N, Index C, Index P, Index itemsize) {
    const BufferSizes b = itemsize == 4 ? cpu::gram_buffers<float>(N, C, P) : cpu::gram_buffers<double>(N, C, P);
    return py::make_tuple(b.forward, b.backward);
}

void gram_matrix(Array f, double scale, Array workspace, Array g) {
    by_dtype(f, [&](auto like) {
        using T = decltype(like);
        const auto f_ = cube<T>(f);
        T *workspace_ = output<T>(workspace), *g_ = output<T>(g);
        const Index N = f.shape(0), C = f.shape(1), P = f.shape(2);
        const WithoutGil nogil;
        cpu::gram_matrix(N, C, P, f_, scale, workspace_, g_);
    });
}

void gram_backward(Array dg, Array f, double scale, Array workspace, Array df) {
    by_dtype(f, [&](auto like) {
        using T = decltype(like);
        const auto dg_ = cube<T>(dg), f_ = cube<T>(f), to = cube<T>(df);
        T *workspace_ = output<T>(workspace), *df_ = output<T>(df);
        const Index N = f.shape(0), C = f.shape(1), P = f.shape(2);
        const WithoutGil nogil;
        cpu::gram_backward(N, C, P, dg_, f_, scale, workspace_, df_, to.s0, to.s1, to.s2);
    });
}

void squared_distance(Array a, Array b, Array partial) {
    by_dtype(a, [&](auto like) {
        using T = decltype(like);
        const auto a_ = vec<T>(a), b_ = vec<T>(b);
        double* partial_ = output<double>(partial);
        const Index n = a.shape(0);
        const WithoutGil nogil;
        cpu::squared_distance(n, a_, b_, partial_);
    });
}

void scaled_difference(Array a, Array b, double scale, Array out) {
    by_dtype(a, [&](auto like) {
        using T = decltype(like);
        const auto a_ = vec<T>(a), b_ = vec<T>(b);
        T* out_ = output<T>(out);
        const Index n = a.shape(0);
        const WithoutGil nogil;
        cpu::scaled_difference(n, a_, b_, scale, out_);
    });
}

void tv_loss(Array img, Array partial) {
    by_dtype(img, [&](auto like) {
        using T = decltype(like);
        const auto img_ = cube<T>(img);
        double* partial_ = output<double>(partial);
        const Index P = img.shape(0), H = img.shape(1), W = img.shape(2);
        const WithoutGil nogil;
        cpu::tv_loss(P, H, W, img_, partial_);
    });
}

void tv_loss_backward(Array img, double scale, Array dimg) {
    by_dtype(img, [&](auto like) {
        using T = decltype(like);
        const auto img_ = cube<T>(img);
        T* dimg_ = output<T>(dimg);
        const Index P = img.shape(0), H = img.shape(1), W = img.shape(2);
        const WithoutGil nogil;
        cpu::tv_loss_backward(P, H, W, img_, scale, dimg_);
    });
}

void sgd(Array w, Array dw, double lr, Array out) {
    by_dtype(w, [&](auto like) {
        using T = decltype(like);
        const T *w_ = pointer<T>(w), *dw_ = pointer<T>(dw);
        T* out_ = output<T>(out);
        const Index n = w.shape(0);
        const WithoutGil nogil;
        cpu::sgd(n, w_, dw_, lr, out_);
    });
}

void sgd_momentum(Array w, Array dw, Array v, double lr, double momentum, Array out, Array v_out) {
    by_dtype(w, [&](auto like) {
        using T = decltype(like);
        const T *w_ = pointer<T>(w), *dw_ = pointer<T>(dw), *v_ = pointer<T>(v);
        T *out_ = output<T>(out), *v_out_ = output<T>(v_out);
        const Index n = w.shape(0);
        const WithoutGil nogil;
        cpu::sgd_momentum(n, w_, dw_, v_, lr, momentum, out_, v_out_);
    });
}

void rmsprop(Array w, Array dw, Array cache, double lr, double decay, double epsilon, Array out, Array cache_out) {
    by_dtype(w, [&](auto like) {
        using T = decltype(like);
        const T *w_ = pointer<T>(w), *dw_ = pointer<T>(dw), *cache_ = pointer<T>(cache);
        T *out_ = output<T>(out), *cache_out_ = output<T>(cache_out);
        const Index n = w.shape(0);
        const WithoutGil nogil;
        cpu::rmsprop(n, w_, dw_, cache_, lr, decay, epsilon, out_, cache_out_);
    });
}

void adam(Array w, Array dw, Array m, Array v, double lr, double beta1, double beta2, double epsilon, double t,
          Array out, Array m_out, Array v_out) {
    by_dtype(w, [&](auto like) {
        using T = decltype(like);
        const T *w_ = pointer<T>(w), *dw_ = pointer<T>(dw), *m_ = pointer<T>(m), *v_ = pointer<T>(v);
        T *out_ = output<T>(out), *m_out_ = output<T>(m_out), *v_out_ = output<T>(v_out);
        const Index n = w.shape(0);
        const WithoutGil nogil;
        cpu::adam(n, w_, dw_, m_, v_, lr, beta1, beta2, epsilon, t, out_, m_out_, v_out_);
    });
}

// ---- what is not a kernel ----

py::list isa_supported() {
    py::list names;
    for (const char* const* name = cpu::isa_supported(); *name; ++name) names.append(*name);
    return names;
}

// Floating-point operations a second of a register-only loop on so many threads: the ceiling that benchmarks quote.
double measure_peak(const std::string& dtype, int threads) {
    const bool single = dtype == "float32";
    if (!single && dtype != "float64")
        throw py::value_error("measure_peak: argument 'dtype' must be 'float32' or 'float64', got '" + dtype + "'");
    const WithoutGil nogil;
    const auto loop = [&](Index rounds) {
        return single ? cpu::table<float>().peak(rounds) : cpu::table<double>().peak(rounds);
    };
    const int before = cpu::num_threads();
    cpu::set_num_threads(threads);
    double best = 0;
    for (int trial = 0; trial < 5; ++trial) {
        double operations = 0;
        const auto start = std::chrono::steady_clock::now();
        cpu::run(threads, [&](const cpu::Worker& w) {
            const double mine = loop(1 << 20);
            if (w.index == 0) operations = mine * w.count;
        });
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        best = operations / seconds.count() > best ? operations / seconds.count() : best;
    }
    cpu::set_num_threads(before);
    return best;
}

cpu::Precision precision_of(const std::string& name) {
    return name == "medium" ? cpu::Precision::medium : name == "high" ? cpu::Precision::high : cpu::Precision::highest;
}

// For tests: sigmoid (0), tanh (1), exp of negatives (2) or log (3) as the kernels compute them.
void evaluate(int which, Array x, Array y) {
    by_dtype(x, [&](auto like) {
        using T = decltype(like);
        cpu::table<T>().evaluate(which, x.shape(0), pointer<T>(x), output<T>(y));
    });
}

}  // namespace
}  // namespace fastrnn

// Exported, so that a stripped module has its name, too: callgrind is told to begin a new count wherever it is called.
#if defined(_WIN32)
extern "C" __declspec(dllexport) void fastrnn_mark() {}
#else
extern "C" __attribute__((visibility("default"), noinline)) void fastrnn_mark() {
    __asm__ volatile("");
}
#endif

PYBIND11_MODULE(_cpu, m, py::mod_gil_not_used()) {
    using namespace fastrnn;
    m.doc() = "C++ kernels of fastrnn. Called by fastrnn.ops, which checks their arguments.";

    const char* wanted = std::getenv("FASTRNN_ISA");
    if (wanted && !*wanted) wanted = nullptr;
    if (!cpu::choose_isa(wanted)) {
        std::string names;
        for (const char* const* name = cpu::isa_supported(); *name; ++name)
            names += std::string(names.empty() ? "" : ", ") + *name;
        throw py::import_error("environment variable FASTRNN_ISA must be one of " + names +
                               " on this processor, got '" + std::string(wanted) + "'");
    }

    m.def("isa", [] { return cpu::isa().name; }, "Instruction set in use.");
    m.def("isa_supported", isa_supported, "Instruction sets compiled in that this processor runs, best first.");
    m.def("set_num_threads", cpu::set_num_threads);
    m.def("num_threads", cpu::num_threads);
    m.def(
        "set_precision", [](const std::string& name) { cpu::set_precision(precision_of(name)); },
        "Lowest precision that products of float32 may have: highest, high or medium.");
    m.def(
        "has_precision", [](const std::string& name) { return cpu::products_in(precision_of(name)) != nullptr; },
        "Whether the instruction set in use has products of float32 in that precision, other than float32's own.");
#if defined(__VERSION__)
    m.attr("compiler") = __VERSION__;
#elif defined(_MSC_FULL_VER)
    m.attr("compiler") = "MSVC " + std::to_string(_MSC_FULL_VER);
#else
    m.attr("compiler") = "unknown";
#endif
#if defined(FASTRNN_EMULATE_AMX)
    m.attr("emulated") = py::make_tuple("amx");
#else
    m.attr("emulated") = py::make_tuple();
#endif
    m.def("mark", fastrnn_mark, "A function that programs which count instructions know by its name.");
    m.def("rouse", cpu::rouse, "Wakes the workers for a call of so many operations that is about to come.");
    m.def("threads_used", cpu::threads_used, "Threads that took part in the last kernel called by this thread.");
    m.def("measure_peak", measure_peak, py::arg("dtype"), py::arg("threads"));
    m.def("evaluate", evaluate);

    m.def("rnn_buffers", recurrent_buffers<cpu::rnn_buffers<float>, cpu::rnn_buffers<double>>);
    m.def("rnn_forward", rnn_forward);
    m.def("rnn_backward", rnn_backward);
    m.def("lstm_buffers", recurrent_buffers<cpu::lstm_buffers<float>, cpu::lstm_buffers<double>>);
    m.def("lstm_forward", lstm_forward<false>);
    m.def("lstm_backward", lstm_backward<false>);
    m.def("lstm_forward_ifgo", lstm_forward<true>);
    m.def("lstm_backward_ifgo", lstm_backward<true>);
    m.def("gru_buffers", recurrent_buffers<cpu::gru_buffers<float>, cpu::gru_buffers<double>>);
    m.def("gru_forward", gru_forward);
    m.def("gru_backward", gru_backward);
    m.def("word_embedding_forward", word_embedding_forward);
    m.def("word_embedding_backward", word_embedding_backward);
    m.def("word_embedding_buffers", cpu::word_embedding_buffers);
    m.def("word_embedding_sort", word_embedding_sort);
    m.def("word_embedding_sparse", word_embedding_sparse);
    m.def("affine_buffers", affine_buffers);
    m.def("affine_forward", affine_forward);
    m.def("affine_backward", affine_backward);
    m.def("temporal_softmax_loss", temporal_softmax_loss);
    m.def("vocab_softmax_loss_buffers", vocab_softmax_loss_buffers);
    m.def("vocab_softmax_loss", vocab_softmax_loss);
    m.def("gram_buffers", gram_buffers);
    m.def("gram_matrix", gram_matrix);
    m.def("gram_backward", gram_backward);
    m.def("squared_distance", squared_distance);
    m.def("scaled_difference", scaled_difference);
    m.def("tv_loss", tv_loss);
    m.def("tv_loss_backward", tv_loss_backward);
    m.def("sgd", sgd);
    m.def("sgd_momentum", sgd_momentum);
    m.def("rmsprop", rmsprop);
    m.def("adam", adam);
}
