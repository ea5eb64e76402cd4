// The CPU implementation: the loops of kernels.h, compiled for several instruction sets into this one object, chosen
// at run time by what PyTorch itself has chosen (at::get_cpu_capability, ATEN_CPU_CAPABILITY in the environment).
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../selective_scan.h"
#include "pytorch_cpp_helper.hpp"
#include "pytorch_device_registry.hpp"

#define S6LA_INLINE inline __attribute__((always_inline))
#define S6LA_LAMBDA __attribute__((always_inline))

namespace s6la {
namespace cpu {

// A tile is some microseconds of work, so that the deepest, smallest maps have several; large maps have few hundred.
constexpr int64_t kTileElements = 2048, kTiles = 256;
constexpr int64_t kTokenChannels = 16;

// How the rows and columns of a map are cut into tiles.
struct MapTiling {
  int64_t rows, inner;         // of one tile
  int64_t inner_tiles, tiles;  // side by side, and in all
  int64_t sums_per_tile;
  int64_t scratch;  // numbers that the kernels which normalise work with
};

struct MapGradients {
  Operand x, dt, B, h0;
  void* sums;  // (tiles, 2, sums_per_tile), zero at first, or null
};

struct TokenGradients {
  Operand x, dt, h0;
  void *sums_A, *sums_B, *sums_bias;  // (D, N), (tiles, steps, batches, N), (D,), zero at first
};

}  // namespace cpu
}  // namespace s6la

// One namespace per instruction set. Everything that the kernels call is inlined into functions of their target.
#define S6LA_REGISTER_BYTES 16
#define S6LA_VEC Pair<Pair<Register>>
namespace s6la {
namespace cpu {
namespace baseline {
#include "../numbers.h"
#include "vector.h"
#include "../update.h"
#include "kernels.h"
#include "normalized_kernels.h"
}  // namespace baseline
}  // namespace cpu
}  // namespace s6la
#undef S6LA_REGISTER_BYTES

#if defined(__x86_64__) && defined(__GNUC__)
#define S6LA_X86 1

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define S6LA_REGISTER_BYTES 32
namespace s6la {
namespace cpu {
namespace avx2 {
#include "../numbers.h"
#include "vector.h"
#include "../update.h"
#include "kernels.h"
#include "normalized_kernels.h"
}  // namespace avx2
}  // namespace cpu
}  // namespace s6la
#undef S6LA_REGISTER_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")
#endif
#undef S6LA_VEC
#define S6LA_REGISTER_BYTES 64
#define S6LA_VEC Pair<Register>
namespace s6la {
namespace cpu {
namespace avx512 {
#include "../numbers.h"
#include "vector.h"
#include "../update.h"
#include "kernels.h"
#include "normalized_kernels.h"
}  // namespace avx512
}  // namespace cpu
}  // namespace s6la
#undef S6LA_REGISTER_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // x86

namespace s6la {
namespace cpu {
namespace {

struct KernelTable {
  void (*map_forward)(const Problem&, const MapTiling&, int64_t, int64_t);
  void (*map_backward)(const Problem&, const MapGradients&, const MapTiling&, int64_t, int64_t);
  void (*token_forward)(const Problem&, int64_t, int64_t);
  void (*token_backward)(const Problem&, const TokenGradients&, int64_t, double*);
};

template <template <typename, typename, typename> class Plain, template <typename, typename, typename> class Normalized,
          typename State, typename Input, typename Compute>
KernelTable table(bool normalize) {
  using P = Plain<State, Input, Compute>;
  // Rather than compiled for a half-type state too: forward() and backward() cast one.
  using N = Normalized<Compute, Input, Compute>;
  if (normalize) return {N::forward, N::backward, nullptr, nullptr};
  return {P::map_forward, P::map_backward, P::token_forward, P::token_backward};
}

template <typename State, typename Input, typename Compute>
KernelTable table_for_this_cpu(bool normalize) {
#ifdef S6LA_X86
  static const std::string capability = at::get_cpu_capability();
  if (capability == "AVX512")
    return table<avx512::Kernels, avx512::NormalizedKernels, State, Input, Compute>(normalize);
  if (capability == "AVX2") return table<avx2::Kernels, avx2::NormalizedKernels, State, Input, Compute>(normalize);
#endif
  return table<baseline::Kernels, baseline::NormalizedKernels, State, Input, Compute>(normalize);
}

// The storage types that Arguments (selective_scan.cpp) leaves: one for the state, one for the inputs.
KernelTable kernels(const Tensor& state, const Tensor& input, bool normalize) {
  const at::ScalarType s = state.scalar_type(), i = input.scalar_type();
  if (s == at::kDouble) return table_for_this_cpu<double, double, double>(normalize);
  if (s == at::kHalf) return table_for_this_cpu<c10::Half, c10::Half, float>(normalize);
  if (s == at::kBFloat16) return table_for_this_cpu<c10::BFloat16, c10::BFloat16, float>(normalize);
  if (i == at::kHalf) return table_for_this_cpu<float, c10::Half, float>(normalize);
  if (i == at::kBFloat16) return table_for_this_cpu<float, c10::BFloat16, float>(normalize);
  return table_for_this_cpu<float, float, float>(normalize);
}

MapTiling map_tiling(const Problem& p) {
  const int64_t elements = std::max(kTileElements, p.batches * p.rows * p.inner / kTiles);
  const bool whole_columns = p.normalize && !p.channels_inner;
  MapTiling tiling;
  tiling.inner = p.channels_inner ? p.inner : std::min(p.inner, elements);
  if (whole_columns) tiling.inner = std::min(p.inner, std::max<int64_t>(elements / p.rows, 1));
  tiling.rows = whole_columns ? p.rows : std::max<int64_t>(elements / tiling.inner, 1);
  tiling.inner_tiles = (p.inner + tiling.inner - 1) / tiling.inner;
  tiling.tiles = (p.batches * p.rows + tiling.rows - 1) / tiling.rows * tiling.inner_tiles;
  tiling.sums_per_tile = p.channels_inner ? p.inner : tiling.rows;
  tiling.scratch = whole_columns ? (p.rows + 2) * tiling.inner : tiling.rows + p.inner;
  return tiling;
}

// The kernels that normalise have no half-type state: a network in half types is rare, under autocast it is float32.
bool needs_cast(const Tensor& h0, const Options& options) { return options.normalize && h0.element_size() == 2; }

void forward(Tensor h0, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor bias, Options options, Tensor states) {
  if (needs_cast(h0, options)) {
    const Tensor exact = at::empty(states.sizes(), A.options());
    forward(h0.to(at::kFloat), x, dt, A, B, bias, options, exact);
    states.copy_(exact);
    return;
  }
  const Problem p = make_problem(h0, x, dt, A, B, bias, states, options);
  const KernelTable run = kernels(h0, x, options.normalize);
  if (A.dim() == 2) {
    const int64_t grain = std::max<int64_t>(kTileElements / p.inner, 1);
    at::parallel_for(0, p.batches * p.rows, grain,
                     [&](int64_t begin, int64_t end) { run.token_forward(p, begin, end); });
    return;
  }
  const MapTiling tiling = map_tiling(p);
  at::parallel_for(0, tiling.tiles, 1, [&](int64_t begin, int64_t end) { run.map_forward(p, tiling, begin, end); });
}

void token_backward(const Problem& p, const KernelTable& run, const Tensor& A, TokenGradients out,
                    const Results& results) {
  const int64_t tiles = (p.rows + kTokenChannels - 1) / kTokenChannels;
  const Tensor sums_A = at::zeros_like(A);
  const Tensor sums_B = at::zeros({tiles, p.steps, p.batches, p.inner}, A.options());
  const Tensor sums_bias = at::zeros({p.rows}, A.options());
  out.sums_A = sums_A.data_ptr();
  out.sums_B = sums_B.data_ptr();
  out.sums_bias = sums_bias.data_ptr();
  at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(2 * p.steps);
    for (int64_t tile = begin; tile < end; ++tile) run.token_backward(p, out, tile, scratch.data());
  });
  if (results.A.has_value()) results.A->copy_(sums_A);
  if (results.B.has_value()) results.B->copy_(sums_B.sum(0));
  if (results.bias.has_value()) results.bias->copy_(sums_bias);
}

// Adds up the tiles' sums, (tiles, 2, sums_per_tile), per channel and in the order of the tiles.
template <typename Compute>
void add_sums(const Problem& p, const MapTiling& tiling, const Tensor& sums, const Results& results) {
  const int64_t channels = p.channels_inner ? p.inner : p.rows;
  std::vector<double> totals(2 * channels, 0.0);
  const Compute* values = sums.data_ptr<Compute>();
  for (int64_t tile = 0; tile < tiling.tiles; ++tile) {
    const int64_t first_row = tile / tiling.inner_tiles * tiling.rows;
    for (int64_t kind = 0; kind < 2; ++kind) {
      for (int64_t i = 0; i < tiling.sums_per_tile; ++i) {
        const int64_t channel = p.channels_inner ? i : (first_row + i) % p.rows;
        totals[kind * channels + channel] += *values++;
      }
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    if (results.A.has_value()) results.A->data_ptr<Compute>()[c] = static_cast<Compute>(totals[c]);
    if (results.bias.has_value()) results.bias->data_ptr<Compute>()[c] = static_cast<Compute>(totals[channels + c]);
  }
}

void backward(Tensor grad, Tensor h0, Tensor x, Tensor dt, Tensor A, Tensor B, Tensor bias, Options options,
              Results results) {
  if (needs_cast(h0, options)) {
    Results exact = results;
    if (results.h0.has_value()) exact.h0 = at::empty(results.h0->sizes(), A.options());
    backward(grad.to(at::kFloat), h0.to(at::kFloat), x, dt, A, B, bias, options, exact);
    if (results.h0.has_value()) results.h0->copy_(*exact.h0);
    return;
  }
  const Problem p = make_problem(h0, x, dt, A, B, bias, grad, options);
  const KernelTable run = kernels(h0, x, options.normalize);
  const Operand out_x = operand_or_null(results.x, true, true), out_dt = operand_or_null(results.dt, true, true);
  const Operand out_h0 = operand_or_null(results.h0, false, true);
  if (A.dim() == 2) {
    token_backward(p, run, A, {out_x, out_dt, out_h0, nullptr, nullptr, nullptr}, results);
    return;
  }
  const MapTiling tiling = map_tiling(p);
  Tensor sums;
  MapGradients out{out_x, out_dt, operand_or_null(results.B, true, true), out_h0, nullptr};
  if (results.A.has_value() || results.bias.has_value()) {
    sums = at::zeros({tiling.tiles, 2, tiling.sums_per_tile}, A.options());
    out.sums = sums.data_ptr();
  }
  at::parallel_for(0, tiling.tiles, 1,
                   [&](int64_t begin, int64_t end) { run.map_backward(p, out, tiling, begin, end); });
  if (!sums.defined()) return;
  if (A.scalar_type() == at::kDouble) {
    add_sums<double>(p, tiling, sums, results);
  } else {
    add_sums<float>(p, tiling, sums, results);
  }
}

}  // namespace
}  // namespace cpu
}  // namespace s6la

REGISTER_DEVICE_IMPL(selective_scan_forward_impl, CPU, s6la::cpu::forward);
REGISTER_DEVICE_IMPL(selective_scan_backward_impl, CPU, s6la::cpu::backward);
