// Sixteen bytes of neighbouring elements: what one thread reads or writes at once where addresses allow it.
#pragma once

#include "device.h"

namespace fastrnn::cuda {

template <class T>
struct alignas(16) Pack {
    static constexpr int size = 16 / sizeof(T);
    T x[size];
};

// Packs of a single element, for addresses that are no multiples of 16.
template <class T>
struct Single {
    static constexpr int size = 1;
    T x[1];
};

// Whether rows of D elements that begin at `data + i row` are whole packs, every one on a multiple of 16 bytes.
template <class T>
inline bool in_packs(const T* data, Index row, Index col, Index D) {
    constexpr Index n = Pack<T>::size;
    return col == 1 && D % n == 0 && row % n == 0 && reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}

}  // namespace fastrnn::cuda
