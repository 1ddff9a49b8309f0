// The device that kernels are planned for.
#include "device.h"

namespace fastrnn::cuda {

cudaError_t current_device(Device& device) {
    int number = 0, value = 0;
    cudaError_t error = cudaGetDevice(&number);
    const auto attribute = [&](cudaDeviceAttr which) {
        if (error == cudaSuccess) error = cudaDeviceGetAttribute(&value, which, number);
        return value;
    };
    device.sms = attribute(cudaDevAttrMultiProcessorCount);
    device.shared = static_cast<std::size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
    device.major = attribute(cudaDevAttrComputeCapabilityMajor);
    device.minor = attribute(cudaDevAttrComputeCapabilityMinor);
    return error;
}

}  // namespace fastrnn::cuda
