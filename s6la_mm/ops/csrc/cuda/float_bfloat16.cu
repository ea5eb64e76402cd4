#include "kernels.cuh"

template struct s6la::cuda::Kernels<float, c10::BFloat16>;
