#include "kernels.cuh"

template struct s6la::cuda::Kernels<float, float>;
template struct s6la::cuda::ScanKernels<float>;
