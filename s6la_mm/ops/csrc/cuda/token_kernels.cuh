// The kernels of the token layout, for any number of steps. `lanes` (a power of two) threads have the state of a
// channel, or a chunk of it. A block goes through its split of the batch in order, which makes the sums over the batch
// its own; the host adds up the splits. Small tensors: simple access patterns.
#pragma once

#include "launch.h"
#include "map_kernel.cuh"

namespace s6la {
namespace cuda {

struct TokenPlace {
  int lane;
  int64_t block, chunk, split;  // of blockIdx.x
  int64_t row, i;

  __device__ explicit TokenPlace(const TokenGrid& grid) {
    lane = threadIdx.x % grid.lanes;
    int64_t b = blockIdx.x;
    chunk = b % grid.chunks;
    b /= grid.chunks;
    block = b % grid.blocks;
    split = b / grid.blocks;
    row = block * (kTokenThreads / grid.lanes) + threadIdx.x / grid.lanes;
    i = chunk * grid.lanes + lane;
  }
};

template <typename Storage>
__device__ __forceinline__ Storage* token_array(const Operand& o, int64_t batch, int64_t row, int64_t i) {
  return static_cast<Storage*>(o.data) + batch * o.batch + row * o.row + i;
}

template <typename State, typename Input>
__global__ void __launch_bounds__(kTokenThreads) token_forward_kernel(const Problem p, const TokenGrid grid) {
  using Compute = ComputeOf<State>;
  const TokenPlace place(grid);
  const int64_t row = place.row, i = place.i;
  if (row >= p.rows || i >= p.inner) return;
  const Compute A = static_cast<const Compute*>(p.A)[row * p.inner + i];
  const Compute bias = static_cast<const Compute*>(p.bias)[row];
  for (int64_t batch = place.split; batch < p.batches; batch += grid.splits) {
    const Input *x = token_array<Input>(p.x, batch, row, 0), *dt = token_array<Input>(p.dt, batch, row, 0);
    const Input* B = token_array<Input>(p.B, batch, 0, i);
    State* states = token_array<State>(p.states, batch, row, i);
    const Compute last = scan(
        p.steps, static_cast<Compute>(*token_array<State>(p.h0, batch, row, i)), A, bias, p.with_softplus, p.zoh,
        [&](int64_t t, Compute& x_t, Compute& dt_t, Compute& B_t) {
          x_t = static_cast<Compute>(x[t * p.x.step]);
          dt_t = static_cast<Compute>(dt[t * p.dt.step]);
          B_t = static_cast<Compute>(B[t * p.B.step]);
        },
        [&](int64_t t, Compute h) {
          if (p.all_states) states[t * p.states.step] = static_cast<State>(h);
        });
    if (!p.all_states) *states = static_cast<State>(last);
  }
}

template <typename State, typename Input>
__global__ void __launch_bounds__(kTokenThreads)
    token_backward_kernel(const Problem p, const TokenGradients out, const TokenGrid grid) {
  using Compute = ComputeOf<State>;
  __shared__ Compute shared[2][kTokenThreads];
  const TokenPlace place(grid);
  const int thread = threadIdx.x, lane = place.lane, lanes = grid.lanes;
  // Idle threads work on a valid place and add nothing: the others wait for them in the sums.
  const bool active = place.row < p.rows && place.i < p.inner;
  const int64_t row = active ? place.row : 0, i = active ? place.i : 0;
  const Compute A = static_cast<const Compute*>(p.A)[row * p.inner + i];
  const Compute bias = static_cast<const Compute*>(p.bias)[row];
  Compute sum_A = 0, sum_bias = 0;
  int turn = 0;  // of the two parts of `shared`: one is read while the next step writes the other
  for (int64_t batch = place.split; batch < p.batches; batch += grid.splits) {
    const Input *x = token_array<Input>(p.x, batch, row, 0), *dt = token_array<Input>(p.dt, batch, row, 0);
    const Input* B = token_array<Input>(p.B, batch, 0, i);
    const State* grads = token_array<State>(p.states, batch, row, i);
    const Compute by_h = scan_backward(
        p.steps, static_cast<Compute>(*token_array<State>(p.h0, batch, row, i)),
        p.all_states ? Compute(0) : static_cast<Compute>(*grads), A, bias, p.with_softplus, p.zoh,
        [&](int64_t t, Compute& x_t, Compute& dt_t, Compute& B_t) {
          x_t = static_cast<Compute>(x[t * p.x.step]);
          dt_t = static_cast<Compute>(dt[t * p.dt.step]);
          B_t = static_cast<Compute>(B[t * p.B.step]);
        },
        [&](int64_t t, Compute& grad) {
          if (p.all_states) grad += static_cast<Compute>(grads[t * p.states.step]);
        },
        [&](int64_t t, const Gradients<Compute>& g) {
          const Compute by_x = add_lanes(active ? g.x : Compute(0), 1, lanes);
          const Compute by_dt = add_lanes(active ? g.dt : Compute(0), 1, lanes);
          if (lane == 0 && place.row < p.rows) {
            if (out.x_parts != nullptr) {
              const int64_t at = ((place.chunk * p.steps + t) * p.batches + batch) * p.rows + row;
              static_cast<Compute*>(out.x_parts)[at] = by_x;
              static_cast<Compute*>(out.dt_parts)[at] = by_dt;
            } else {
              if (out.x.data) *token_array<Input>(out.x, batch, row, t * out.x.step) = static_cast<Input>(by_x);
              if (out.dt.data) *token_array<Input>(out.dt, batch, row, t * out.dt.step) = static_cast<Input>(by_dt);
            }
          }
          sum_A += g.A;
          sum_bias += by_dt;
          if (out.B_parts == nullptr) return;
          // The sum over the channels of a warp, then over the warps.
          const Compute by_B = add_lanes(active ? g.B : Compute(0), lanes, kWarp);
          turn = 1 - turn;
          if (thread % kWarp < lanes) shared[turn][thread / kWarp * lanes + lane] = by_B;
          __syncthreads();
          if (thread < lanes && place.i < p.inner) {
            Compute total = 0;
            for (int warp = 0; warp < kTokenThreads / kWarp; ++warp) total += shared[turn][warp * lanes + lane];
            const int64_t at = ((place.block * p.steps + t) * p.batches + batch) * p.inner + place.i;
            static_cast<Compute*>(out.B_parts)[at] = total;
          }
        });
    if (active && out.h0.data) *token_array<State>(out.h0, batch, row, i) = static_cast<State>(by_h);
  }
  if (active && out.A_parts != nullptr) {
    static_cast<Compute*>(out.A_parts)[(place.split * p.rows + row) * p.inner + i] = sum_A;
  }
  if (lane == 0 && place.row < p.rows && out.bias_parts != nullptr) {
    static_cast<Compute*>(out.bias_parts)[(place.split * grid.chunks + place.chunk) * p.rows + row] = sum_bias;
  }
}

}  // namespace cuda
}  // namespace s6la
