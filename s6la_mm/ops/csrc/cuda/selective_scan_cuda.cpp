// The CUDA implementation: chooses types and grids of the kernels, and adds up their partial sums.
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>

#include <algorithm>
#include <utility>

#include "../selective_scan.h"
#include "launch.h"
#include "pytorch_device_registry.hpp"

namespace s6la {
namespace cuda {
namespace {

// Blocks per multiprocessor below which a smaller block is taken: small maps should reach all of the device.
constexpr int64_t kFewBlocks = 4;
// Threads per multiprocessor in the backward pass; beyond it, blocks go through several tiles, and leave fewer sums.
constexpr int64_t kManyThreads = 4096;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t power_of_two(int64_t least) {
  int64_t power = 1;
  while (power < least) power *= 2;
  return power;
}

Queue queue() {
  return {at::cuda::getCurrentCUDAStream(), at::cuda::getCurrentDeviceProperties()->multiProcessorCount};
}

// `numbers`: of a thread, side by side.
MapGrid map_grid(const Problem& p, bool backward, int numbers, int64_t multiprocessors) {
  const int64_t few = kFewBlocks * multiprocessors;
  MapGrid grid{};
  int64_t lanes = std::min<int64_t>(power_of_two(ceil_div(p.inner, numbers)), kWarp), threads = kMapThreads;
  const auto choose = [&](int64_t chunks, int64_t tiles) {
    grid = {static_cast<int>(lanes), static_cast<int>(ceil_div(threads, kWarp) * kWarp), chunks, tiles, tiles};
    return chunks * tiles >= few;
  };
  if (p.channels_inner) {
    const auto fits = [&] {
      return choose(ceil_div(p.inner, lanes * numbers), ceil_div(p.batches * p.rows, threads / lanes));
    };
    while (!fits() && threads > 2 * kWarp) threads /= 2;
  } else if (p.normalize) {
    const auto fits = [&] {
      threads = p.rows * lanes;
      return choose(1, p.batches * ceil_div(p.inner, lanes * numbers));
    };
    while (p.rows * lanes > kMapThreads) lanes /= 2;
    while (!fits() && lanes > 2) lanes /= 2;
  } else {
    const auto fits = [&] {
      const int64_t slots = std::min(threads / lanes, power_of_two(p.rows));
      threads = slots * lanes;
      return choose(ceil_div(p.rows, slots), p.batches * ceil_div(p.inner, lanes * numbers));
    };
    while (!fits() && threads > 2 * kWarp) threads /= 2;
  }
  if (backward) {
    const int64_t most = ceil_div(kManyThreads * multiprocessors, grid.threads * grid.chunks);
    grid.blocks = std::min(grid.tiles, most);
  }
  return grid;
}

TokenGrid token_grid(const Problem& p, int64_t multiprocessors) {
  TokenGrid grid{};
  grid.lanes = static_cast<int>(std::min<int64_t>(power_of_two(p.inner), kWarp));
  grid.blocks = ceil_div(p.rows, kTokenThreads / grid.lanes);
  grid.chunks = ceil_div(p.inner, grid.lanes);
  // As many blocks as the device holds; more splits would only leave more sums.
  grid.splits = std::min(p.batches, ceil_div(2 * kFewBlocks * multiprocessors, grid.blocks * grid.chunks));
  return grid;
}

// What the map kernels count with 32 bits.
void check_size(const Problem& p, const MapGradients& out, const MapGrid& grid, int64_t element_size) {
  const int64_t limit = (int64_t(1) << 31) - 1;
  int64_t longest = 0;
  for (const Operand& o : {p.x, p.dt, p.B, p.h0, p.states, out.x, out.dt, out.B, out.h0}) {
    if (p.rows > 1) longest = std::max(longest, o.row * element_size);
  }
  TORCH_CHECK_VALUE(longest <= limit && p.batches * p.rows <= limit && grid.tiles + grid.blocks <= limit &&
                        grid.blocks * grid.chunks <= limit,
                    "x is too large for one launch of the CUDA kernels, ", p.batches, " x ", p.rows, " x ", p.inner,
                    " in memory: split the batch");
}

// One batch where the pixels of all operands follow each other anyhow: spares a division for each.
void merge_batches(Problem& p, const MapGradients& out) {
  if (!p.channels_inner) return;
  for (const Operand& o : {p.x, p.dt, p.B, p.h0, p.states, out.x, out.dt, out.B, out.h0}) {
    if (o.data != nullptr && o.batch != p.rows * o.row) return;
  }
  p.rows *= p.batches;
  p.batches = 1;
}

template <typename K>
struct Type {
  using Functions = K;
};

// Calls function(Type<Kernels<…>>()) for the storage types that Arguments (selective_scan.cpp) leaves.
template <typename Function>
void with_kernels(const Tensor& state, const Tensor& input, const Function& function) {
  const at::ScalarType s = state.scalar_type(), i = input.scalar_type();
  if (s == at::kDouble) return function(Type<Kernels<double, double>>());
  if (s == at::kHalf) return function(Type<Kernels<c10::Half, c10::Half>>());
  if (s == at::kBFloat16) return function(Type<Kernels<c10::BFloat16, c10::BFloat16>>());
  if (i == at::kHalf) return function(Type<Kernels<float, c10::Half>>());
  if (i == at::kBFloat16) return function(Type<Kernels<float, c10::BFloat16>>());
  return function(Type<Kernels<float, float>>());
}

template <typename Function>
void with_scan_kernels(const Tensor& state, const Function& function) {
  if (state.scalar_type() == at::kDouble) return function(Type<ScanKernels<double>>());
  return function(Type<ScanKernels<float>>());
}

// The tensors of a call; A and the bias have the compute type.
struct Call {
  Tensor h0, x, dt, A, B, bias;
  Options options;

  bool token() const { return A.dim() == 2; }
  bool scans() const { return !token() && x.size(0) != 1; }  // the kernels of map_kernel.cuh do one step
  int numbers() const { return A.scalar_type() == at::kDouble ? kVec<double> : kVec<float>; }
  int64_t channel_axis() const { return options.channels_inner ? -1 : -2; }

  // A block has no room for so many channels: PyTorch divides by their root mean square.
  bool normalizes_apart() const { return options.normalize && A.size(0) > kWarp * numbers(); }
  // The kernels of scan_kernel.cuh know no other storage than the compute type.
  bool scans_other_types() const {
    return scans() && (h0.scalar_type() != A.scalar_type() || x.scalar_type() != A.scalar_type());
  }
  Call as_computed() const {
    const auto type = A.scalar_type();
    return {h0.to(type), x.to(type), dt.to(type), A, B.to(type), bias, options};
  }
  // `factor` becomes what x, dt and B are multiplied with.
  Call normalized(Tensor& factor) const {
    Call call = as_computed();
    factor = call.x.square().mean(channel_axis(), true).add_(options.norm_eps).rsqrt_();
    call.x = call.x * factor;
    call.dt = call.dt * factor;
    call.B = call.B * factor;
    call.options.normalize = false;
    return call;
  }
  Problem problem(const Tensor& states) const { return make_problem(h0, x, dt, A, B, bias, states, options); }
};

void run_forward(const Call& call, const Tensor& states) {
  if (call.normalizes_apart() || call.scans_other_types()) {
    Tensor factor;
    const Call exact = call.normalizes_apart() ? call.normalized(factor) : call.as_computed();
    const Tensor result = at::empty(states.sizes(), exact.h0.options());
    run_forward(exact, result);
    states.copy_(result);
    return;
  }
  Problem p = call.problem(states);
  const Queue q = queue();
  if (call.scans()) {
    with_scan_kernels(call.h0, [&](auto type) { C10_CUDA_CHECK(decltype(type)::Functions::forward(p, q)); });
    return;
  }
  MapGrid grid{};
  if (!call.token()) {
    merge_batches(p, {});
    grid = map_grid(p, false, call.numbers(), q.multiprocessors);
    check_size(p, {}, grid, std::max(call.h0.element_size(), call.x.element_size()));
  }
  with_kernels(call.h0, call.x, [&](auto type) {
    using K = typename decltype(type)::Functions;
    C10_CUDA_CHECK(call.token() ? K::token_forward(p, token_grid(p, q.multiprocessors), q)
                                : K::map_forward(p, grid, q));
  });
}

void token_backward(const Call& call, const Tensor& grad, const Results& results) {
  const Problem p = call.problem(grad);
  const Queue q = queue();
  const TokenGrid grid = token_grid(p, q.multiprocessors);
  Tensor x_parts, dt_parts, A_parts, bias_parts, B_parts;
  const auto parts = [&](Tensor& t, bool wanted, at::IntArrayRef sizes) {
    if (wanted) t = at::empty(sizes, call.A.options());
    return wanted ? t.data_ptr() : nullptr;
  };
  const bool chunks = grid.chunks > 1;
  TokenGradients out{operand_or_null(results.h0, false, true), operand_or_null(results.x, true, true),
                     operand_or_null(results.dt, true, true)};
  out.x_parts = parts(x_parts, chunks, {grid.chunks, p.steps, p.batches, p.rows});
  out.dt_parts = parts(dt_parts, chunks, {grid.chunks, p.steps, p.batches, p.rows});
  out.A_parts = parts(A_parts, results.A.has_value(), {grid.splits, p.rows, p.inner});
  out.bias_parts = parts(bias_parts, results.bias.has_value(), {grid.splits * grid.chunks, p.rows});
  out.B_parts = parts(B_parts, results.B.has_value(), {grid.blocks, p.steps, p.batches, p.inner});
  with_kernels(call.h0, call.x,
               [&](auto type) { C10_CUDA_CHECK(decltype(type)::Functions::token_backward(p, out, grid, q)); });
  const auto add_up = [](const OptionalTensor& result, const Tensor& parts) {
    if (!result.has_value() || !parts.defined()) return;
    Tensor sum = *result;
    sum.scalar_type() == parts.scalar_type() ? at::sum_out(sum, parts, at::IntArrayRef({0})) : sum.copy_(parts.sum(0));
  };
  add_up(results.x, x_parts);
  add_up(results.dt, dt_parts);
  add_up(results.A, A_parts);
  add_up(results.B, B_parts);
  add_up(results.bias, bias_parts);
}

// sums: the partial ones of A (index 0 of the axis `which`) and the bias (1).
void add_up_parameters(const Results& results, const Tensor& sums, int64_t which, at::IntArrayRef axes) {
  for (const auto& [result, index] : {std::make_pair(results.A, 0), std::make_pair(results.bias, 1)}) {
    if (!result.has_value()) continue;
    Tensor sum = *result;
    at::sum_out(sum, sums.select(which, index), axes);
  }
}

void map_backward(const Call& call, const Tensor& grad, const Results& results) {
  Problem p = call.problem(grad);
  const Queue q = queue();
  const MapGradients out{operand_or_null(results.x, true, true), operand_or_null(results.dt, true, true),
                         operand_or_null(results.B, true, true), operand_or_null(results.h0, false, true)};
  const bool wants_sums = results.A.has_value() || results.bias.has_value();
  Tensor sums;
  if (call.scans()) {
    if (wants_sums) sums = at::empty({2, p.batches, p.rows, p.inner}, call.A.options());
    with_scan_kernels(call.h0, [&](auto type) {
      C10_CUDA_CHECK(decltype(type)::Functions::backward(p, out, wants_sums ? sums.data_ptr() : nullptr, q));
    });
    if (wants_sums) add_up_parameters(results, sums, 0, {0, p.channels_inner ? 1 : 2});
    return;
  }
  merge_batches(p, out);
  const MapGrid grid = map_grid(p, true, call.numbers(), q.multiprocessors);
  check_size(p, out, grid, std::max(call.h0.element_size(), call.x.element_size()));
  if (wants_sums) sums = at::empty({grid.blocks, 2, call.A.size(0)}, call.A.options());
  with_kernels(call.h0, call.x, [&](auto type) {
    C10_CUDA_CHECK(decltype(type)::Functions::map_backward(p, out, wants_sums ? sums.data_ptr() : nullptr, grid, q));
  });
  if (wants_sums) add_up_parameters(results, sums, 1, {0});
}

void run_backward(const Call& call, const Tensor& grad, const Results& results) {
  if (!call.normalizes_apart() && !call.scans_other_types()) {
    return call.token() ? token_backward(call, grad, results) : map_backward(call, grad, results);
  }
  Tensor factor;
  const Call exact = call.normalizes_apart() ? call.normalized(factor) : call.as_computed();
  const bool all = call.normalizes_apart() && results.x.has_value();  // they make the gradient of the factor
  const auto like = [&](const OptionalTensor& result, const Tensor& tensor) {
    return all || result.has_value() ? OptionalTensor(at::empty(tensor.sizes(), exact.A.options())) : OptionalTensor();
  };
  const Results apart{like(results.x, call.x), like(results.dt, call.dt), results.A,
                      like(results.B, call.B), like(results.h0, call.h0), results.bias};
  run_backward(exact, grad.to(exact.A.scalar_type()), apart);
  const auto finish = [&](const OptionalTensor& result, const OptionalTensor& value) {
    if (result.has_value()) result->copy_(factor.defined() ? *value * factor : *value);
  };
  finish(results.dt, apart.dt);
  finish(results.B, apart.B);
  if (results.h0.has_value()) results.h0->copy_(*apart.h0);
  if (factor.defined() && results.x.has_value()) {
    // exact.x and the like are divided already.
    const Tensor by_factor = *apart.x * exact.x + *apart.dt * exact.dt + *apart.B * exact.B;
    results.x->copy_((*apart.x - exact.x * by_factor.mean(call.channel_axis(), true)) * factor);
  } else {
    finish(results.x, apart.x);
  }
}

void forward(Tensor h0, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor bias, Options options, Tensor states) {
  const c10::cuda::CUDAGuard guard(h0.device());
  run_forward({h0, x, dt, A, B, bias, options}, states);
}

void backward(Tensor grad, Tensor h0, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor bias, Options options,
              Results results) {
  const c10::cuda::CUDAGuard guard(h0.device());
  run_backward({h0, x, dt, A, B, bias, options}, grad, results);
}

}  // namespace
}  // namespace cuda
}  // namespace s6la

REGISTER_DEVICE_IMPL(selective_scan_forward_impl, CUDA, s6la::cuda::forward);
REGISTER_DEVICE_IMPL(selective_scan_backward_impl, CUDA, s6la::cuda::backward);
