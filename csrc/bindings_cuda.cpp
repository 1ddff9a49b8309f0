// fastrnn._cuda: the CUDA kernels as Python functions over arrays on the device. Compiled a second time over NumPy
// arrays and the simulator (csrc/cuda/host) as fastrnn._cuda_on_host, for tests without a GPU. Arguments were checked
// in fastrnn/ops; nothing here waits for the device.
#include <pybind11/pybind11.h>

#include <functional>
#include <initializer_list>
#include <numeric>
#include <string>
#include <vector>

#include "cuda/check.h"
#include "cuda/half.h"
#include "cuda/recurrent_plan.h"
#include "kernels.h"

namespace py = pybind11;

namespace fastrnn {
namespace {

using cuda::check;
using cuda::Error;
using cuda::Stream;
using Array = py::object;
using Optional = py::object;  // an array or None

#if defined(FASTRNN_CUDA_ON_HOST)
constexpr const char* interface_name = "__array_interface__";
#else
constexpr const char* interface_name = "__cuda_array_interface__";
#endif

constexpr int max_axes = 4;

// What the array interface protocol says of an array, strides in elements.
struct View {
    void* data;
    int axes;
    Index shape[max_axes], strides[max_axes];
    char kind;
    int itemsize;

    explicit View(const Array& array) {
        const py::dict told = array.attr(interface_name);
        const auto type = told["typestr"].cast<std::string>();  // "<f4"
        kind = type[1];
        itemsize = std::stoi(type.substr(2));
        data = reinterpret_cast<void*>(py::tuple(told["data"])[0].cast<std::uintptr_t>());
        const py::tuple sizes = told["shape"];
        axes = static_cast<int>(sizes.size());
        if (axes > max_axes) throw py::type_error("fastrnn._cuda: an array of too many axes");
        Index next = 1;
        for (int i = axes - 1; i >= 0; --i) {
            shape[i] = sizes[static_cast<std::size_t>(i)].cast<Index>();
            strides[i] = next;
            next *= shape[i];
        }
        if (told.contains("strides") && !told["strides"].is_none()) {
            const py::tuple bytes = told["strides"];
            for (int i = 0; i < axes; ++i) strides[i] = bytes[static_cast<std::size_t>(i)].cast<Index>() / itemsize;
        }
    }

    // An array that does not have the dtype that a kernel reads would be memory misread.
    template <class T>
    T* pointer() const {
        constexpr bool real = std::is_floating_point_v<T> || std::is_same_v<T, cuda::Half>;
        constexpr char wanted = real ? 'f' : std::is_same_v<T, unsigned char> ? 'b' : 'i';
        if (kind != wanted || itemsize != sizeof(T))
            throw py::type_error("fastrnn._cuda: arrays of one call must have one dtype");
        return static_cast<T*>(data);
    }
};

template <class T>
Vec<T> vec(const Array& a) {
    const View v(a);
    return {v.pointer<T>(), v.strides[0]};
}
template <class T>
Matrix<T> matrix(const Array& a) {
    const View v(a);
    return {v.pointer<T>(), v.strides[0], v.strides[1]};
}
template <class T>
Cube<T> cube(const Array& a) {
    const View v(a);
    return {v.pointer<T>(), v.strides[0], v.strides[1], v.strides[2]};
}
template <class T>
Matrix<T> optional_matrix(const Optional& a) {
    return a.is_none() ? Matrix<T>{nullptr, 0, 0} : matrix<T>(a);
}
template <class T>
T* output(const Array& a) {
    return View(a).pointer<T>();
}
Stream stream_of(std::uintptr_t number) {
    return reinterpret_cast<Stream>(number);
}

// Calls f with a float or a double to tell the type of the arrays, like `like`'s.
template <class F>
void by_dtype(const Array& like, F&& f) {
    if (View(like).itemsize == 4)
        f(float());
    else
        f(double());
}

// ---- rnn, lstm, gru -------------------------------------------------------------------------------------------------

// The same where arrays may be of half precision too.
template <class F>
void by_any_dtype(const Array& like, F&& f) {
    if (View(like).itemsize == 2)
        f(cuda::Half());
    else
        by_dtype(like, f);
}

template <class T>
Vec<T> optional_vec(const Optional& a) {
    return a.is_none() ? Vec<T>{nullptr, 0} : vec<T>(a);
}

using Buffers = Error (*)(Index, Index, Index, BufferSizes&);

template <Buffers F16, Buffers F32, Buffers F64>
py::tuple recurrent_buffers(Index N, Index steps, Index H, Index itemsize) {
    BufferSizes b{};
    check("recurrent_buffers", (itemsize == 2 ? F16 : itemsize == 4 ? F32 : F64)(N, steps, H, b));
    return py::make_tuple(b.reserve, b.forward, b.backward);
}

// h (N,T,H); D is not the kernels' business here.
Sequence sequence(const Array& h, const Optional& lengths, bool reverse) {
    const View v(h);
    return {v.shape[0], v.shape[1], 0, v.shape[2], lengths.is_none() ? nullptr : View(lengths).pointer<Index>(),
            reverse};
}

// How the time loop is cut: of a device told, so that tests may ask for any.
py::dict recurrent_plan(Index N, Index H, int columns, Index K, int itemsize, int precision, int sms,
                        std::size_t shared, int major, int minor) {
    using namespace cuda::recurrent;
    const Plan p =
        choose_plan({sms, shared, major, minor}, N, H, columns, K, itemsize, static_cast<cuda::Precision>(precision));
    py::dict d;
    constexpr const char* engines[] = {"fma", "split", "tf32", "bf16", "fp16"};
    d["tile"] = p.tile;
    d["engine"] = engines[static_cast<int>(p.engine)];
    if (p.tile < 0) return d;
    const Tile& t = tiles[p.tile];
    d["resident"] = p.resident;
    d["pass_units"] = p.pass_units;
    d["unit_passes"] = p.unit_passes;
    d["row_passes"] = p.row_passes;
    d["unit_groups"] = p.unit_groups;
    d["row_groups"] = p.row_groups;
    d["chunks"] = p.chunks;
    d["stages"] = p.stages;
    d["shared"] = p.shared_bytes(t);
    d["scratch"] = Scratch(p, t, N).bytes;
    d["rows"] = t.rows;
    d["columns"] = t.columns;
    d["slices"] = t.slices;
    d["chunk_k"] = t.chunk * t.k_of_word;
    return d;
}

// The same of the current device.
py::dict current_plan(Index N, Index H, int columns, Index K, int itemsize, int precision) {
    cuda::recurrent::Limits limits{};
    check("current_plan", cuda::recurrent::current_limits(limits));
    return recurrent_plan(N, H, columns, K, itemsize, precision, limits.sms, limits.shared, limits.major, limits.minor);
}

// ---- rnn ------------------------------------------------------------------------------------------------------------

void rnn_forward(std::uintptr_t stream, int precision, Array h0, Array Wh, Array b, Optional lengths, bool reverse,
                 Array h, Array h_n, Array reserve, Array workspace) {
    by_any_dtype(h, [&](auto like) {
        using T = decltype(like);
        check("rnn_forward",
              cuda::rnn_forward<T>(stream_of(stream), static_cast<cuda::Precision>(precision),
                                   sequence(h, lengths, reverse), matrix<T>(h0), matrix<T>(Wh), vec<T>(b), output<T>(h),
                                   output<T>(h_n), output<T>(reserve), output<T>(workspace)));
    });
}

void rnn_backward(std::uintptr_t stream, int precision, Array dh, Optional dh_n, Array Wh, Optional lengths,
                  bool reverse, Array reserve, Array workspace, Array dh0, Array db) {
    by_any_dtype(dh, [&](auto like) {
        using T = decltype(like);
        check("rnn_backward", cuda::rnn_backward<T>(stream_of(stream), static_cast<cuda::Precision>(precision),
                                                    sequence(dh, lengths, reverse), cube<T>(dh),
                                                    optional_matrix<T>(dh_n), matrix<T>(Wh), output<T>(reserve),
                                                    output<T>(workspace), output<T>(dh0), output<T>(db)));
    });
}

// ---- lstm -----------------------------------------------------------------------------------------------------------

void lstm_forward(std::uintptr_t stream, int precision, Array h0, Optional c0, Array Wh, Array b, Optional lengths,
                  bool reverse, Array h, Array h_n, Array c_n, Array reserve, Array workspace) {
    by_any_dtype(h, [&](auto like) {
        using T = decltype(like);
        check("lstm_forward",
              cuda::lstm_forward<T>(stream_of(stream), static_cast<cuda::Precision>(precision),
                                    sequence(h, lengths, reverse), matrix<T>(h0), optional_matrix<T>(c0), matrix<T>(Wh),
                                    vec<T>(b), output<T>(h), output<T>(h_n), output<T>(c_n), output<T>(reserve),
                                    output<T>(workspace)));
    });
}

void lstm_backward(std::uintptr_t stream, int precision, Array dh, Optional dh_n, Optional dc_n, Array Wh,
                   Optional lengths, bool reverse, Array reserve, Array workspace, Array dh0, Array dc0, Array db) {
    by_any_dtype(dh, [&](auto like) {
        using T = decltype(like);
        check("lstm_backward",
              cuda::lstm_backward<T>(stream_of(stream), static_cast<cuda::Precision>(precision),
                                     sequence(dh, lengths, reverse), cube<T>(dh), optional_matrix<T>(dh_n),
                                     optional_matrix<T>(dc_n), matrix<T>(Wh), output<T>(reserve), output<T>(workspace),
                                     output<T>(dh0), output<T>(dc0), output<T>(db)));
    });
}

// ---- gru ------------------------------------------------------------------------------------------------------------

void gru_forward(std::uintptr_t stream, int precision, Array h0, Array Wh, Array b, Optional bh, Optional lengths,
                 bool reverse, Array h, Array h_n, Array reserve, Array workspace) {
    by_any_dtype(h, [&](auto like) {
        using T = decltype(like);
        check("gru_forward", cuda::gru_forward<T>(stream_of(stream), static_cast<cuda::Precision>(precision),
                                                  sequence(h, lengths, reverse), matrix<T>(h0), matrix<T>(Wh),
                                                  vec<T>(b), optional_vec<T>(bh), output<T>(h), output<T>(h_n),
                                                  output<T>(reserve), output<T>(workspace)));
    });
}

void gru_backward(std::uintptr_t stream, int precision, Array dh, Optional dh_n, Array Wh, Optional lengths,
                  bool reverse, Array reserve, Array workspace, Array dh0, Array db, Array dbh) {
    by_any_dtype(dh, [&](auto like) {
        using T = decltype(like);
        check("gru_backward",
              cuda::gru_backward<T>(stream_of(stream), static_cast<cuda::Precision>(precision),
                                    sequence(dh, lengths, reverse), cube<T>(dh), optional_matrix<T>(dh_n),
                                    matrix<T>(Wh), output<T>(reserve), output<T>(workspace), output<T>(dh0),
                                    output<T>(db), output<T>(dbh)));
    });
}

// ---- embedding ------------------------------------------------------------------------------------------------------

void first_bad_id(std::uintptr_t stream, Array ids, Index V, Array position) {
    check("first_bad_id",
          cuda::first_bad_id(stream_of(stream), View(ids).shape[0], vec<Index>(ids), V, output<Index>(position)));
}

Index word_embedding_buffers(Index n, Index V, Index D, Index itemsize) {
    Index size = 0;
    check("word_embedding_buffers", cuda::word_embedding_buffers(n, V, D, itemsize, &size));
    return size;
}

void word_embedding_forward(std::uintptr_t stream, Array ids, Array W, Array out) {
    by_dtype(W, [&](auto like) {
        using T = decltype(like);
        check("word_embedding_forward",
              cuda::word_embedding_forward<T>(stream_of(stream), View(ids).shape[0], View(W).shape[1], vec<Index>(ids),
                                              matrix<T>(W), output<T>(out)));
    });
}

void word_embedding_backward(std::uintptr_t stream, Array ids, Array dout, Array workspace, Array dW, bool add) {
    by_dtype(dW, [&](auto like) {
        using T = decltype(like);
        const View to(dW);
        check("word_embedding_backward",
              cuda::word_embedding_backward<T>(stream_of(stream), View(ids).shape[0], to.shape[0], to.shape[1],
                                               vec<Index>(ids), matrix<T>(dout), output<Index>(workspace),
                                               to.pointer<T>(), to.strides[0], to.strides[1], add));
    });
}

void word_embedding_sort(std::uintptr_t stream, Array ids, Index V, Index D, Index itemsize, Array workspace) {
    check("word_embedding_sort", cuda::word_embedding_sort(stream_of(stream), View(ids).shape[0], V, D, itemsize,
                                                           vec<Index>(ids), output<Index>(workspace)));
}

void word_embedding_sparse(std::uintptr_t stream, Array dout, Index V, Array workspace, Array rows, Array values) {
    by_dtype(values, [&](auto like) {
        using T = decltype(like);
        const View v(values);
        check("word_embedding_sparse", cuda::word_embedding_sparse<T>(
                                           stream_of(stream), View(dout).shape[0], V, v.shape[1], matrix<T>(dout),
                                           output<Index>(workspace), v.shape[0], output<Index>(rows), v.pointer<T>()));
    });
}

// ---- softmax_loss ---------------------------------------------------------------------------------------------------

void temporal_softmax_loss(std::uintptr_t stream, Array x, Array y, Array mask, Index count, Array row_loss, Array dx) {
    by_dtype(x, [&](auto like) {
        using T = decltype(like);
        const View v(x);
        check("temporal_softmax_loss",
              cuda::temporal_softmax_loss<T>(stream_of(stream), v.shape[0], v.shape[1], matrix<T>(x), vec<Index>(y),
                                             vec<unsigned char>(mask), count, output<double>(row_loss), output<T>(dx)));
    });
}

void total_loss(std::uintptr_t stream, Array losses, double divisor, Array total) {
    by_dtype(total, [&](auto like) {
        using T = decltype(like);
        const View v(losses);
        check("total_loss",
              cuda::total_loss<T>(stream_of(stream), v.shape[0], v.pointer<double>(), divisor, output<T>(total)));
    });
}

const Index* optional_rows(const Optional& rows) {
    return rows.is_none() ? nullptr : output<Index>(rows);
}

void take_rows(std::uintptr_t stream, Array h, Array mask, Optional rows, Index first, Array out) {
    by_dtype(h, [&](auto like) {
        using T = decltype(like);
        const View to(out);
        check("take_rows", cuda::take_rows<T>(stream_of(stream), to.shape[0], to.shape[1], View(h).shape[1], cube<T>(h),
                                              vec<unsigned char>(mask), optional_rows(rows), first, to.pointer<T>()));
    });
}

void put_rows(std::uintptr_t stream, Array from, Array rows, Index first, Array dh) {
    by_dtype(from, [&](auto like) {
        using T = decltype(like);
        const View v(from);
        check("put_rows", cuda::put_rows<T>(stream_of(stream), v.shape[0], v.shape[1], v.pointer<T>(),
                                            output<Index>(rows), first, output<T>(dh)));
    });
}

void clear_masked(std::uintptr_t stream, Array mask, Array dh) {
    by_dtype(dh, [&](auto like) {
        using T = decltype(like);
        const View v(dh);
        check("clear_masked", cuda::clear_masked<T>(stream_of(stream), v.shape[0], v.shape[1], vec<unsigned char>(mask),
                                                    v.pointer<T>()));
    });
}

void softmax_chunk(std::uintptr_t stream, Array scores, Array b, Array y, Array mask, Optional rows, Index first,
                   Index count, Array row_loss) {
    by_dtype(scores, [&](auto like) {
        using T = decltype(like);
        const View v(scores);
        check("vocab_softmax_loss",
              cuda::softmax_chunk<T>(stream_of(stream), v.shape[0], v.shape[1], v.pointer<T>(), vec<T>(b),
                                     vec<Index>(y), vec<unsigned char>(mask), optional_rows(rows), first, count,
                                     output<double>(row_loss)));
    });
}

void column_sums(std::uintptr_t stream, Array a, bool add, Array sums) {
    by_dtype(a, [&](auto like) {
        using T = decltype(like);
        const View v(a);
        check("column_sums",
              cuda::column_sums<T>(stream_of(stream), v.shape[0], v.shape[1], v.pointer<T>(), add, output<T>(sums)));
    });
}

// ---- gram -----------------------------------------------------------------------------------------------------------

py::tuple gram_cut(Index N, Index C, Index P, Index itemsize) {
    Index tiles = 0, parts = 0, part_k = 0;
    check("gram_cut", itemsize == 4 ? cuda::gram_cut<float>(N, C, P, &tiles, &parts, &part_k)
                                    : cuda::gram_cut<double>(N, C, P, &tiles, &parts, &part_k));
    return py::make_tuple(tiles, parts, part_k);
}

py::tuple gram_buffers(Index N, Index C, Index P, Index itemsize) {
    BufferSizes b{};
    check("gram_buffers",
          itemsize == 4 ? cuda::gram_buffers<float>(N, C, P, &b) : cuda::gram_buffers<double>(N, C, P, &b));
    return py::make_tuple(b.forward, b.backward);
}

void gram_matrix(std::uintptr_t stream, Array f, double scale, Array workspace, Array g) {
    by_dtype(f, [&](auto like) {
        using T = decltype(like);
        const View v(f);
        check("gram_matrix", cuda::gram_matrix<T>(stream_of(stream), v.shape[0], v.shape[1], v.shape[2], cube<T>(f),
                                                  scale, output<T>(workspace), output<T>(g)));
    });
}

void gram_backward(std::uintptr_t stream, Array dg, Array f, double scale, Array workspace, Array df) {
    by_dtype(f, [&](auto like) {
        using T = decltype(like);
        const View v(f), to(df);
        check("gram_backward", cuda::gram_backward<T>(stream_of(stream), v.shape[0], v.shape[1], v.shape[2],
                                                      cube<T>(dg), cube<T>(f), scale, output<T>(workspace),
                                                      to.pointer<T>(), to.strides[0], to.strides[1], to.strides[2]));
    });
}

// ---- image_losses ---------------------------------------------------------------------------------------------------

void squared_distance(std::uintptr_t stream, Array a, Array b, Array partial) {
    by_dtype(a, [&](auto like) {
        using T = decltype(like);
        check("squared_distance", cuda::squared_distance<T>(stream_of(stream), View(a).shape[0], vec<T>(a), vec<T>(b),
                                                            output<double>(partial)));
    });
}

void scaled_difference(std::uintptr_t stream, Array a, Array b, double scale, Array out) {
    by_dtype(a, [&](auto like) {
        using T = decltype(like);
        check("scaled_difference", cuda::scaled_difference<T>(stream_of(stream), View(a).shape[0], vec<T>(a), vec<T>(b),
                                                              scale, output<T>(out)));
    });
}

void tv_loss(std::uintptr_t stream, Array img, Array partial) {
    by_dtype(img, [&](auto like) {
        using T = decltype(like);
        const View v(img);
        check("tv_loss", cuda::tv_loss<T>(stream_of(stream), v.shape[0], v.shape[1], v.shape[2], cube<T>(img),
                                          output<double>(partial)));
    });
}

void tv_loss_backward(std::uintptr_t stream, Array img, double scale, Array dimg) {
    by_dtype(img, [&](auto like) {
        using T = decltype(like);
        const View v(img);
        check("tv_loss_backward", cuda::tv_loss_backward<T>(stream_of(stream), v.shape[0], v.shape[1], v.shape[2],
                                                            cube<T>(img), scale, output<T>(dimg)));
    });
}

// ---- optim ----------------------------------------------------------------------------------------------------------

// Lists of arrays, a list for each of a rule's arrays, all lists of one length, as the tables of the kernels.
template <class T>
struct Lists {
    std::vector<Index> sizes;
    std::vector<T*> arrays;
    Index count;

    explicit Lists(std::initializer_list<py::list> lists) : count(static_cast<Index>(lists.begin()->size())) {
        for (const py::list& list : lists) {
            if (static_cast<Index>(list.size()) != count)
                throw py::value_error("fastrnn._cuda: lists of one call must have one length");
            for (const py::handle array : list) {
                const View v(py::reinterpret_borrow<Array>(array));
                arrays.push_back(v.pointer<T>());
                const Index size = std::accumulate(v.shape, v.shape + v.axes, Index(1), std::multiplies<>());
                if (&list == lists.begin())
                    sizes.push_back(size);
                else if (sizes[(arrays.size() - 1) % static_cast<std::size_t>(count)] != size)
                    throw py::value_error("fastrnn._cuda: arrays of one update must have one size");
            }
        }
    }
};

using Arrays = py::list;

void sgd(std::uintptr_t stream, Arrays w, Arrays dw, double lr, Arrays out) {
    if (w.empty()) return;
    by_dtype(w[0], [&](auto like) {
        const Lists<decltype(like)> l{w, dw, out};
        check("sgd", cuda::sgd(stream_of(stream), l.count, l.sizes.data(), l.arrays.data(), lr));
    });
}

void sgd_momentum(std::uintptr_t stream, Arrays w, Arrays dw, Arrays v, double lr, double momentum, Arrays out,
                  Arrays v_out) {
    if (w.empty()) return;
    by_dtype(w[0], [&](auto like) {
        const Lists<decltype(like)> l{w, dw, v, out, v_out};
        check("sgd_momentum",
              cuda::sgd_momentum(stream_of(stream), l.count, l.sizes.data(), l.arrays.data(), lr, momentum));
    });
}

void rmsprop(std::uintptr_t stream, Arrays w, Arrays dw, Arrays cache, double lr, double decay, double epsilon,
             Arrays out, Arrays cache_out) {
    if (w.empty()) return;
    by_dtype(w[0], [&](auto like) {
        const Lists<decltype(like)> l{w, dw, cache, out, cache_out};
        check("rmsprop",
              cuda::rmsprop(stream_of(stream), l.count, l.sizes.data(), l.arrays.data(), lr, decay, epsilon));
    });
}

void adam(std::uintptr_t stream, Arrays w, Arrays dw, Arrays m, Arrays v, double lr, double beta1, double beta2,
          double epsilon, double t, Arrays out, Arrays m_out, Arrays v_out) {
    if (w.empty()) return;
    by_dtype(w[0], [&](auto like) {
        const Lists<decltype(like)> l{w, dw, m, v, out, m_out, v_out};
        check("adam",
              cuda::adam(stream_of(stream), l.count, l.sizes.data(), l.arrays.data(), lr, beta1, beta2, epsilon, t));
    });
}

}  // namespace
}  // namespace fastrnn

#if defined(FASTRNN_CUDA_ON_HOST)
#define FASTRNN_MODULE _cuda_on_host
#else
#define FASTRNN_MODULE _cuda
#endif

PYBIND11_MODULE(FASTRNN_MODULE, m) {
    using namespace fastrnn;
    m.doc() = "CUDA kernels of fastrnn over arrays on the device; use the functions of fastrnn, which check arguments.";

    // ---- rnn, lstm, gru ----
    m.def("recurrent_plan", &recurrent_plan);
    m.def("current_plan", &current_plan);
    m.def("rnn_buffers",
          &recurrent_buffers<cuda::rnn_buffers<cuda::Half>, cuda::rnn_buffers<float>, cuda::rnn_buffers<double>>);
    m.def("rnn_forward", &rnn_forward);
    m.def("rnn_backward", &rnn_backward);
    m.def("lstm_buffers",
          &recurrent_buffers<cuda::lstm_buffers<cuda::Half>, cuda::lstm_buffers<float>, cuda::lstm_buffers<double>>);
    m.def("lstm_forward", &lstm_forward);
    m.def("lstm_backward", &lstm_backward);
    m.def("gru_buffers",
          &recurrent_buffers<cuda::gru_buffers<cuda::Half>, cuda::gru_buffers<float>, cuda::gru_buffers<double>>);
    m.def("gru_forward", &gru_forward);
    m.def("gru_backward", &gru_backward);

    // ---- embedding ----
    m.def("first_bad_id", &first_bad_id);
    m.def("word_embedding_buffers", &word_embedding_buffers);
    m.def("word_embedding_forward", &word_embedding_forward);
    m.def("word_embedding_backward", &word_embedding_backward);
    m.def("word_embedding_sort", &word_embedding_sort);
    m.def("word_embedding_sparse", &word_embedding_sparse);

    // ---- softmax_loss ----
    m.def("temporal_softmax_loss", &temporal_softmax_loss);
    m.def("total_loss", &total_loss);
    m.def("take_rows", &take_rows);
    m.def("put_rows", &put_rows);
    m.def("clear_masked", &clear_masked);
    m.def("softmax_chunk", &softmax_chunk);
    m.def("column_sums", &column_sums);

    // ---- gram ----
    m.def("gram_cut", &gram_cut);
    m.def("gram_buffers", &gram_buffers);
    m.def("gram_matrix", &gram_matrix);
    m.def("gram_backward", &gram_backward);

    // ---- image_losses ----
    m.def("squared_distance", &squared_distance);
    m.def("scaled_difference", &scaled_difference);
    m.def("tv_loss", &tv_loss);
    m.def("tv_loss_backward", &tv_loss_backward);

    // ---- optim ----
    m.def("sgd", &sgd);
    m.def("sgd_momentum", &sgd_momentum);
    m.def("rmsprop", &rmsprop);
    m.def("adam", &adam);

#if defined(FASTRNN_CUDA_ON_HOST)
    m.def(
        "simulate",
        [](int sms, std::size_t shared, int major, int minor, unsigned seed) {
            cuda::host::settings() = {sms, shared, major, minor, seed};
        },
        py::arg("sms") = 4, py::arg("shared") = 232448, py::arg("major") = 9, py::arg("minor") = 0, py::arg("seed") = 0,
        "Set what the simulated device has, and the seed of the order of its threads.");
#endif
}
