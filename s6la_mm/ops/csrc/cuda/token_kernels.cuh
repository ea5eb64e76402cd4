// The CUDA kernels of the token layout. A warp has one channel; it goes through the batch in order, which makes the sums
// over the batch its own, and its lanes are the numbers of the channel's state. Small tensors: simple access patterns.
#pragma once

#include "kernels.cuh"

namespace s6la {
namespace cuda {

struct TokenGradients {
  Operand h0;
  void *x, *dt;     // (chunks, steps, batches, D), to be summed over the chunks of 32 state numbers
  void *A, *bias;   // (D, N), (chunks, D)
  void* B;          // (blocks, steps, batches, N), to be summed over the blocks
};

constexpr int kTokenChannels = kThreads / kWarp;  // of one block

// grid: (blocks of kTokenChannels channels, chunks of 32 state numbers, batches)
template <typename State, typename Input, typename Compute>
__global__ void __launch_bounds__(kThreads) token_forward_kernel(const Problem p) {
  const int64_t row = int64_t(blockIdx.x) * kTokenChannels + threadIdx.x / kWarp;
  const int64_t i = int64_t(blockIdx.y) * kWarp + threadIdx.x % kWarp;
  if (row >= p.rows || i >= p.inner) return;
  for (int64_t batch = blockIdx.z; batch < p.batches; batch += gridDim.z) {
    const Input *x = pointer<Input>(p.x, batch, row, 0), *dt = pointer<Input>(p.dt, batch, row, 0);
    const Input* B = pointer<Input>(p.B, batch, 0, i);
    State* states = pointer<State>(p.states, batch, row, i);
    const Compute last = scan(
        p.steps, static_cast<Compute>(*pointer<State>(p.h0, batch, row, i)),
        static_cast<const Compute*>(p.A)[row * p.inner + i], static_cast<const Compute*>(p.bias)[row], p.with_softplus,
        p.zoh,
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

// grid: (blocks of kTokenChannels channels, chunks of 32 state numbers)
template <typename State, typename Input, typename Compute>
__global__ void __launch_bounds__(kThreads) token_backward_kernel(const Problem p, const TokenGradients out) {
  const int lane = threadIdx.x % kWarp, channel = threadIdx.x / kWarp;
  const int64_t wanted_row = int64_t(blockIdx.x) * kTokenChannels + channel;
  const int64_t wanted_i = int64_t(blockIdx.y) * kWarp + lane;
  // Idle threads work on a valid place and add nothing: the others wait for them in the sums.
  const bool active = wanted_row < p.rows && wanted_i < p.inner;
  const int64_t row = active ? wanted_row : 0, i = active ? wanted_i : 0;
  const Compute A = static_cast<const Compute*>(p.A)[row * p.inner + i];
  const Compute bias = static_cast<const Compute*>(p.bias)[row];
  __shared__ Compute shared[kThreads];
  Compute sum_A = 0, sum_bias = 0;
  for (int64_t batch = 0; batch < p.batches; ++batch) {
    const Input *x = pointer<Input>(p.x, batch, row, 0), *dt = pointer<Input>(p.dt, batch, row, 0);
    const Input* B = pointer<Input>(p.B, batch, 0, i);
    const State* states = pointer<State>(p.states, batch, row, i);
    const Compute by_h = scan_backward(
        p.steps, static_cast<Compute>(*pointer<State>(p.h0, batch, row, i)),
        p.all_states ? Compute(0) : static_cast<Compute>(*states), A, bias, p.with_softplus, p.zoh,
        [&](int64_t t, Compute& x_t, Compute& dt_t, Compute& B_t) {
          x_t = static_cast<Compute>(x[t * p.x.step]);
          dt_t = static_cast<Compute>(dt[t * p.dt.step]);
          B_t = static_cast<Compute>(B[t * p.B.step]);
        },
        [&](int64_t t, Compute& grad) {
          if (p.all_states) grad += static_cast<Compute>(states[t * p.states.step]);
        },
        [&](int64_t t, const Gradients<Compute>& g) {
          const Compute by_x = add_lanes(active ? g.x : Compute(0), kWarp);
          const Compute by_dt = add_lanes(active ? g.dt : Compute(0), kWarp);
          if (lane == 0 && wanted_row < p.rows) {
            const int64_t at = ((blockIdx.y * p.steps + t) * p.batches + batch) * p.rows + row;
            static_cast<Compute*>(out.x)[at] = by_x;
            static_cast<Compute*>(out.dt)[at] = by_dt;
          }
          sum_A += g.A;
          sum_bias += by_dt;
          __syncthreads();
          shared[threadIdx.x] = active ? g.B : Compute(0);
          __syncthreads();
          if (channel == 0 && wanted_i < p.inner) {
            Compute total = 0;
            for (int c = 0; c < kTokenChannels; ++c) total += shared[c * kWarp + lane];
            const int64_t at = ((int64_t(blockIdx.x) * p.steps + t) * p.batches + batch) * p.inner + wanted_i;
            static_cast<Compute*>(out.B)[at] = total;
          }
        });
    if (active && out.h0.data) *pointer<State>(out.h0, batch, row, i) = static_cast<State>(by_h);
  }
  if (active) static_cast<Compute*>(out.A)[row * p.inner + i] = sum_A;
  if (lane == 0 && wanted_row < p.rows) static_cast<Compute*>(out.bias)[blockIdx.y * p.rows + row] = sum_bias;
}

}  // namespace cuda
}  // namespace s6la
