// The CUDA implementation: chooses types, vector width and launch of the kernels, and adds up their partial sums.
#include <algorithm>
#include <vector>

#include "kernels.cuh"
#include "pytorch_cuda_helper.hpp"
#include "pytorch_device_registry.hpp"
#include "token_kernels.cuh"

namespace s6la {
namespace cuda {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// On the current stream. Not <<<...>>>, which a compiler for the CPU (tests/cuda_emulation) could not read.
template <typename... Parameters>
void launch(void (*kernel)(Parameters...), dim3 grid, std::decay_t<Parameters>... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(kThreads);
  config.stream = at::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, arguments...));
}

int64_t blocks_for_warps(int64_t warps) {
  const int64_t blocks = ceil_div(warps * kWarp, kThreads);
  TORCH_CHECK_VALUE(blocks < (int64_t(1) << 31), "the tensors are too large for one launch: ", blocks, " blocks");
  return blocks;
}

// Whether `width` elements of every operand can be read at once, wherever a row starts.
bool aligned(const std::vector<std::pair<Operand, int64_t>>& operands, const Problem& p, int64_t width) {
  if (p.inner % width != 0) return false;
  // They may be slices of a larger tensor.
  if ((reinterpret_cast<uintptr_t>(p.A) | reinterpret_cast<uintptr_t>(p.bias)) % 16 != 0) return false;
  for (const auto& [o, element_size] : operands) {
    if (o.data == nullptr) continue;
    const int64_t bytes = std::min<int64_t>(width * element_size, 16);
    if (reinterpret_cast<uintptr_t>(o.data) % bytes != 0) return false;
    for (const int64_t stride : {o.batch, o.row}) {
      if (stride * element_size % bytes != 0) return false;
    }
  }
  return true;
}

// One batch where the rows of all operands follow each other anyhow: spares a division per pixel.
void merge_batches(Problem& p, MapGradients& out) {
  std::vector<Operand*> operands = {&p.x, &p.dt, &p.B, &p.h0, &p.states, &out.x, &out.dt, &out.B, &out.h0};
  for (const Operand* o : operands) {
    if (o->data != nullptr && o->batch != p.rows * o->row) return;
  }
  p.rows *= p.batches;
  p.batches = 1;
}

template <typename State, typename Input, typename Compute, int kVec, bool kBackward>
void launch_channels_inner(Problem p, MapGradients out, const Tensor& like_A, const Results& results) {
  merge_batches(p, out);
  int group = 1;
  while (group < kWarp && group * kVec < p.inner) group *= 2;
  const int64_t chunks = ceil_div(p.inner, int64_t(group) * kVec);
  TORCH_CHECK_VALUE(chunks <= 8, "state_dim=", p.inner, " is too large for the CUDA kernel: at most ", 8 * kWarp * kVec,
                    " channels side by side in memory");
  const int64_t pixels = p.batches * p.rows;
  const int64_t enough = int64_t(at::cuda::getCurrentDeviceProperties()->multiProcessorCount) * 8;
  const int64_t blocks = std::min(ceil_div(pixels, kThreads / group), kBackward ? enough : int64_t(1) << 30);
  Tensor sums;
  if (kBackward && (results.A.has_value() || results.bias.has_value())) {
    sums = at::empty({blocks, 2, p.inner}, like_A.options());
    out.sums = sums.data_ptr();
  }
  if (chunks == 1) {
    launch(channels_inner_kernel<State, Input, Compute, kVec, 1, kBackward>, dim3(blocks), p, out, group);
  } else {
    launch(channels_inner_kernel<State, Input, Compute, kVec, 8, kBackward>, dim3(blocks), p, out, group);
  }
  if (!sums.defined()) return;
  const Tensor totals = sums.sum(0);
  if (results.A.has_value()) results.A->copy_(totals[0]);
  if (results.bias.has_value()) results.bias->copy_(totals[1]);
}

template <typename State, typename Input, typename Compute, int kVec, bool kBackward>
void launch_pixels_inner(const Problem& p, MapGradients out, const Tensor& like_A, const Results& results) {
  const int64_t pieces = ceil_div(p.inner, int64_t(kVec) * kWarp * (p.normalize ? 1 : kPieceSteps));
  Tensor sums;
  if (kBackward && (results.A.has_value() || results.bias.has_value())) {
    sums = at::empty({p.batches, p.rows, pieces, 2}, like_A.options());
    out.sums = sums.data_ptr();
  }
  if (p.normalize) {
    launch(normalized_pixels_kernel<State, Input, Compute, kVec, kBackward>, blocks_for_warps(p.batches * pieces), p, out,
           pieces);
  } else {
    launch(pixels_inner_kernel<State, Input, Compute, kVec, kBackward>, blocks_for_warps(p.batches * p.rows * pieces), p,
           out, pieces);
  }
  if (!sums.defined()) return;
  const Tensor totals = sums.sum(at::IntArrayRef({0, 2}));
  if (results.A.has_value()) results.A->copy_(totals.select(1, 0));
  if (results.bias.has_value()) results.bias->copy_(totals.select(1, 1));
}

template <typename State, typename Input, typename Compute, bool kBackward>
void launch_map(const Problem& p, const MapGradients& out, const Tensor& like_A, const Results& results) {
  constexpr int64_t smaller = std::min(sizeof(State), sizeof(Input));
  constexpr int kVec = 16 / smaller;
  constexpr int64_t in = sizeof(Input), st = sizeof(State);
  const bool wide = p.steps == 1 && aligned({{p.x, in}, {p.dt, in}, {p.B, in}, {p.h0, st}, {p.states, st}, {out.x, in},
                                             {out.dt, in}, {out.B, in}, {out.h0, st}}, p, kVec);
  if (p.channels_inner) {
    wide ? launch_channels_inner<State, Input, Compute, kVec, kBackward>(p, out, like_A, results)
         : launch_channels_inner<State, Input, Compute, 1, kBackward>(p, out, like_A, results);
  } else {
    wide ? launch_pixels_inner<State, Input, Compute, kVec, kBackward>(p, out, like_A, results)
         : launch_pixels_inner<State, Input, Compute, 1, kBackward>(p, out, like_A, results);
  }
}

template <typename State, typename Input, typename Compute>
void launch_token_forward(const Problem& p) {
  const dim3 grid(ceil_div(p.rows, kTokenChannels), ceil_div(p.inner, kWarp), std::min<int64_t>(p.batches, 65535));
  launch(token_forward_kernel<State, Input, Compute>, grid, p);
}

template <typename State, typename Input, typename Compute>
void launch_token_backward(const Problem& p, const Tensor& A, const Results& results) {
  const int64_t blocks = ceil_div(p.rows, kTokenChannels), chunks = ceil_div(p.inner, kWarp);
  const auto options = A.options();
  const Tensor by_x = at::zeros({chunks, p.steps, p.batches, p.rows}, options), by_dt = at::zeros_like(by_x);
  const Tensor by_B = at::zeros({blocks, p.steps, p.batches, p.inner}, options);
  const Tensor by_A = at::zeros_like(A), by_bias = at::zeros({chunks, p.rows}, options);
  TokenGradients out{operand_or_null(results.h0, false, true), by_x.data_ptr(), by_dt.data_ptr(),
                     by_A.data_ptr(), by_bias.data_ptr(), by_B.data_ptr()};
  launch(token_backward_kernel<State, Input, Compute>, dim3(blocks, chunks), p, out);
  if (results.x.has_value()) results.x->copy_(by_x.sum(0));
  if (results.dt.has_value()) results.dt->copy_(by_dt.sum(0));
  if (results.A.has_value()) results.A->copy_(by_A);
  if (results.B.has_value()) results.B->copy_(by_B.sum(0));
  if (results.bias.has_value()) results.bias->copy_(by_bias.sum(0));
}

template <typename State, typename Input, typename Compute>
struct Types {
  using StateType = State;
  using InputType = Input;
  using ComputeType = Compute;
};

// Calls function(Types<…>()) for the storage types that Arguments (selective_scan.cpp) leaves.
template <typename Function>
void with_types(const Tensor& state, const Tensor& input, const Function& function) {
  const at::ScalarType s = state.scalar_type(), i = input.scalar_type();
  if (s == at::kDouble) return function(Types<double, double, double>());
  if (s == at::kHalf) return function(Types<c10::Half, c10::Half, float>());
  if (s == at::kBFloat16) return function(Types<c10::BFloat16, c10::BFloat16, float>());
  if (i == at::kHalf) return function(Types<float, c10::Half, float>());
  if (i == at::kBFloat16) return function(Types<float, c10::BFloat16, float>());
  return function(Types<float, float, float>());
}

void forward(Tensor h0, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor bias, Options options, Tensor states) {
  const c10::cuda::CUDAGuard guard(h0.device());
  const Problem p = make_problem(h0, x, dt, A, B, bias, states, options);
  with_types(h0, x, [&](auto types) {
    using T = decltype(types);
    if (A.dim() == 2) {
      launch_token_forward<typename T::StateType, typename T::InputType, typename T::ComputeType>(p);
    } else {
      launch_map<typename T::StateType, typename T::InputType, typename T::ComputeType, false>(p, {}, A, {});
    }
  });
}

void backward(Tensor grad, Tensor h0, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor bias, Options options,
              Results results) {
  const c10::cuda::CUDAGuard guard(h0.device());
  const Problem p = make_problem(h0, x, dt, A, B, bias, grad, options);
  const bool token = A.dim() == 2;
  MapGradients out{};
  if (!token) {
    out = {operand_or_null(results.x, true, true), operand_or_null(results.dt, true, true),
           operand_or_null(results.B, true, true), operand_or_null(results.h0, false, true), nullptr};
  }
  with_types(h0, x, [&](auto types) {
    using T = decltype(types);
    if (token) {
      launch_token_backward<typename T::StateType, typename T::InputType, typename T::ComputeType>(p, A, results);
    } else {
      launch_map<typename T::StateType, typename T::InputType, typename T::ComputeType, true>(p, out, A, results);
    }
  });
}

}  // namespace
}  // namespace cuda
}  // namespace s6la

REGISTER_DEVICE_IMPL(selective_scan_forward_impl, CUDA, s6la::cuda::forward);
REGISTER_DEVICE_IMPL(selective_scan_backward_impl, CUDA, s6la::cuda::backward);
