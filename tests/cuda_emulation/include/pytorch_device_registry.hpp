// mmcv's registry, with one change: what is registered for CUDA tensors is found for CPU tensors.
#pragma once

#include_next "pytorch_device_registry.hpp"

#undef REGISTER_DEVICE_IMPL
#define REGISTER_DEVICE_IMPL(key, device, value)    \
  static const bool registered_##key = [] {         \
    DEVICE_REGISTRY(key).Register(at::kCPU, value); \
    return true;                                    \
  }();
