// The definitions of launch.h. Each of the small .cu files beside this one includes it and compiles some of them.
#pragma once

#include <algorithm>

#include "launch.h"
#include "map_kernel.cuh"
#include "scan_kernel.cuh"
#include "token_kernels.cuh"

namespace s6la {
namespace cuda {

// Not <<<...>>>, which a compiler for the CPU (tests/cuda_emulation) could not read.
template <typename... Parameters>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, Queue queue,
                   std::decay_t<Parameters>... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.stream = queue.stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <typename Compute>
MapArray map_array(const Operand& o, const Problem& p, size_t size) {
  // Strides that no thread uses may be anything.
  const int64_t batch = p.batches > 1 ? o.batch * size : 0, row = p.rows > 1 ? o.row * size : 0;
  const int64_t bytes = size * kVec<Compute>;
  const bool wide = (reinterpret_cast<uintptr_t>(o.data) | batch | row) % bytes == 0;
  return {static_cast<char*>(o.data), batch, static_cast<int>(row), wide};
}

template <typename State, typename Input>
MapArguments<ComputeOf<State>> map_arguments(const Problem& p, const MapGrid& grid) {
  using Compute = ComputeOf<State>;
  const auto array = [&](const Operand& o, size_t size) { return map_array<Compute>(o, p, size); };
  MapArguments<Compute> a{};
  a.x = array(p.x, sizeof(Input));
  a.dt = array(p.dt, sizeof(Input));
  a.B = array(p.B, sizeof(Input));
  a.h = array(p.h0, sizeof(State));
  a.states = array(p.states, sizeof(State));
  a.A = p.A;
  a.bias = p.bias;
  a.parameters_wide = (reinterpret_cast<uintptr_t>(p.A) | reinterpret_cast<uintptr_t>(p.bias)) % 16 == 0;
  a.batches = static_cast<unsigned>(p.batches);
  a.rows = static_cast<unsigned>(p.rows);
  a.inner = p.inner;
  a.norm_eps = static_cast<Compute>(p.norm_eps);
  a.one_by_channels = static_cast<Compute>(1.0 / (p.channels_inner ? p.inner : p.rows));
  a.chunks = static_cast<unsigned>(grid.chunks);
  a.tiles = static_cast<unsigned>(grid.tiles);
  if (!p.channels_inner) {  // whose tiles do not stop at the end of a map
    a.tiles_of_a_map = static_cast<unsigned>(grid.tiles / p.batches);
    a.by_tiles_of_a_map = make_divisor(a.tiles_of_a_map);
  }
  while (1 << a.log_lanes < grid.lanes) ++a.log_lanes;
  a.with_softplus = p.with_softplus;
  a.normalize = p.normalize;
  return a;
}

template <typename State, typename Input, bool kBackward>
auto choose_map_kernel(const Problem& p) {
  if (p.channels_inner) {
    return p.zoh ? map_kernel<State, Input, true, kBackward, true> : map_kernel<State, Input, true, kBackward, false>;
  }
  return p.zoh ? map_kernel<State, Input, false, kBackward, true> : map_kernel<State, Input, false, kBackward, false>;
}

template <typename State, typename Input>
cudaError_t Kernels<State, Input>::map_forward(const Problem& p, const MapGrid& grid, Queue queue) {
  const MapArguments<Compute> a = map_arguments<State, Input>(p, grid);
  return launch(choose_map_kernel<State, Input, false>(p), grid.blocks * grid.chunks, grid.threads, queue, a);
}

template <typename State, typename Input>
cudaError_t Kernels<State, Input>::map_backward(const Problem& p, const MapGradients& out, void* sums,
                                                const MapGrid& grid, Queue queue) {
  MapArguments<Compute> a = map_arguments<State, Input>(p, grid);
  a.by_x = map_array<Compute>(out.x, p, sizeof(Input));
  a.by_dt = map_array<Compute>(out.dt, p, sizeof(Input));
  a.by_B = map_array<Compute>(out.B, p, sizeof(Input));
  a.by_h = map_array<Compute>(out.h0, p, sizeof(State));
  a.sums = sums;
  return launch(choose_map_kernel<State, Input, true>(p), grid.blocks * grid.chunks, grid.threads, queue, a);
}

template <typename State, typename Input>
cudaError_t Kernels<State, Input>::token_forward(const Problem& p, const TokenGrid& grid, Queue queue) {
  return launch(token_forward_kernel<State, Input>, grid.blocks * grid.chunks * grid.splits, kTokenThreads, queue, p,
                grid);
}

template <typename State, typename Input>
cudaError_t Kernels<State, Input>::token_backward(const Problem& p, const TokenGradients& out, const TokenGrid& grid,
                                                  Queue queue) {
  return launch(token_backward_kernel<State, Input>, grid.blocks * grid.chunks * grid.splits, kTokenThreads, queue, p,
                out, grid);
}

template <typename Compute>
cudaError_t ScanKernels<Compute>::forward(const Problem& p, Queue queue) {
  const int64_t numbers = p.batches * p.rows * p.inner;
  return launch(scan_forward_kernel<Compute>, (numbers + kScanThreads - 1) / kScanThreads, kScanThreads, queue, p);
}

template <typename Compute>
cudaError_t ScanKernels<Compute>::backward(const Problem& p, const MapGradients& out, void* sums, Queue queue) {
  const int64_t numbers = p.batches * p.rows * p.inner;
  return launch(scan_backward_kernel<Compute>, (numbers + kScanThreads - 1) / kScanThreads, kScanThreads, queue, p, out,
                static_cast<Compute*>(sums));
}

}  // namespace cuda
}  // namespace s6la
