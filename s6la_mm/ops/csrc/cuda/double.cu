#include "kernels.cuh"

template struct s6la::cuda::Kernels<double, double>;
template struct s6la::cuda::ScanKernels<double>;
