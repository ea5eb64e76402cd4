#include "kernels.cuh"

template struct s6la::cuda::Kernels<c10::Half, c10::Half>;
