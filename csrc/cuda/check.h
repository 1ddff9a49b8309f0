// Errors of the CUDA runtime as exceptions, for the bindings: every launch goes through check.
#pragma once

#include <stdexcept>
#include <string>

#if defined(FASTRNN_CUDA_ON_HOST)
#include "host/simulator.h"
inline std::string cudaGetErrorString(cudaError_t error) {
    return "error " + std::to_string(error);
}
#else
#include <cuda_runtime_api.h>
#endif

namespace fastrnn::cuda {

inline void check(const char* function, int error) {
    if (error == cudaSuccess) return;
    const std::string what = cudaGetErrorString(static_cast<cudaError_t>(error));
    throw std::runtime_error(std::string(function) + ": the launch failed on the GPU: " + what);
}

}  // namespace fastrnn::cuda
