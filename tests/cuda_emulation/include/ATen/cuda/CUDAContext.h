// In place of PyTorch's header: a device of four multiprocessors ($CUDA_EMULATION_MULTIPROCESSORS), so that kernels
// which walk over their grid go round more than once on small tensors.
#pragma once

#include <ATen/ATen.h>
#include <cuda_runtime.h>

namespace at {
namespace cuda {
struct EmulatedProperties {
  int multiProcessorCount = std::atoi(cuda_emulation::variable("CUDA_EMULATION_MULTIPROCESSORS", "4"));
};
inline const EmulatedProperties* getCurrentDeviceProperties() {
  static const EmulatedProperties properties;
  return &properties;
}
inline cudaStream_t getCurrentCUDAStream() { return nullptr; }
}  // namespace cuda
}  // namespace at

#define C10_CUDA_CHECK(call) TORCH_CHECK((call) == cudaSuccess)
