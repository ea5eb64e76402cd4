#include "kernels.cuh"

template struct s6la::cuda::Kernels<c10::BFloat16, c10::BFloat16>;
