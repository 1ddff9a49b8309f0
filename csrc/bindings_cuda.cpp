// fastrnn._cuda: the CUDA kernels as Python functions over arrays on the device. Compiled a second time over NumPy
// arrays and the simulator (csrc/cuda/host) as fastrnn._cuda_on_host, for tests without a GPU. Arguments were checked
// in fastrnn/ops; nothing here waits for the device.
#include <pybind11/pybind11.h>

#include <string>

#include "cuda/check.h"
#include "kernels.h"

namespace py = pybind11;

namespace fastrnn {
namespace {

using cuda::check;
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
        constexpr char wanted = std::is_floating_point_v<T> ? 'f' : std::is_same_v<T, unsigned char> ? 'b' : 'i';
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

// ---- rnn ------------------------------------------------------------------------------------------------------------

// ---- lstm -----------------------------------------------------------------------------------------------------------

// ---- gru ------------------------------------------------------------------------------------------------------------

// ---- embedding ------------------------------------------------------------------------------------------------------

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

    // ---- rnn ----

    // ---- lstm ----

    // ---- gru ----

    // ---- embedding ----

    // ---- softmax_loss ----
    m.def("temporal_softmax_loss", &temporal_softmax_loss);
    m.def("total_loss", &total_loss);
    m.def("take_rows", &take_rows);
    m.def("put_rows", &put_rows);
    m.def("clear_masked", &clear_masked);
    m.def("softmax_chunk", &softmax_chunk);
    m.def("column_sums", &column_sums);

    // ---- gram ----

    // ---- image_losses ----
    m.def("squared_distance", &squared_distance);
    m.def("scaled_difference", &scaled_difference);
    m.def("tv_loss", &tv_loss);
    m.def("tv_loss_backward", &tv_loss_backward);

    // ---- optim ----

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
