// The CUDA kernels. One thread handles `kVec` neighbouring elements (16 bytes where the strides allow), in one of two
// arrangements of the map layout:
//
//   channels inner   a group of lanes shares a pixel, every thread keeps its channels for all its pixels;
//   pixels inner     a warp walks along a piece of one channel (or a thread down all channels of its pixels, where the
//                    root mean square over the channels is needed).
//
// Sums for A and the bias are kept in registers, added up inside a block or warp in a fixed order, and written as one
// partial sum per block or warp, which the host adds up: no atomics, the same result every time.
#pragma once

#include <cmath>
#include <cstdint>

#include "../selective_scan.h"

#define S6LA_INLINE __host__ __device__ __forceinline__

namespace s6la {
namespace cuda {

#include "../numbers.h"
#include "../update.h"

constexpr int kThreads = 256, kWarp = 32;
constexpr int kPieceSteps = 8;  // how often a warp moves along its piece of a channel

template <typename Storage, int kVec>
struct alignas(sizeof(Storage) * kVec < 16 ? sizeof(Storage) * kVec : 16) Pack {
  Storage at[kVec];
};

template <typename Compute, int kVec>
struct Values {
  Compute at[kVec];
};

template <typename Compute, int kVec, typename Storage>
__device__ __forceinline__ Values<Compute, kVec> load(const Storage* p) {
  const auto pack = *reinterpret_cast<const Pack<Storage, kVec>*>(p);
  Values<Compute, kVec> values;
#pragma unroll
  for (int k = 0; k < kVec; ++k) values.at[k] = static_cast<Compute>(pack.at[k]);
  return values;
}

template <typename Compute, int kVec, typename Storage>
__device__ __forceinline__ void store(Storage* p, const Values<Compute, kVec>& values) {
  Pack<Storage, kVec> pack;
#pragma unroll
  for (int k = 0; k < kVec; ++k) pack.at[k] = static_cast<Storage>(values.at[k]);
  *reinterpret_cast<Pack<Storage, kVec>*>(p) = pack;
}

template <typename Storage>
__device__ __forceinline__ Storage* pointer(const Operand& o, int64_t batch, int64_t row, int64_t i) {
  return static_cast<Storage*>(o.data) + batch * o.batch + row * o.row + i;
}

template <typename Compute>
__device__ __forceinline__ Compute add_lanes(Compute v, int width) {
  for (int offset = width / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset, width);
  return v;
}

struct MapGradients {
  Operand x, dt, B, h0;
  void* sums;  // partial sums for A and the bias, see the kernels; null if nobody asked
};

// Everything about `kVec` elements of a map at one place, whatever the arrangement.
template <typename State, typename Input, typename Compute, int kVec>
struct Place {
  using V = Values<Compute, kVec>;

  const Problem& p;
  int64_t batch, row, i;

  __device__ V A() const { return parameter(p.A); }
  __device__ V bias() const { return parameter(p.bias); }
  __device__ V parameter(const void* data) const {
    const Compute* values = static_cast<const Compute*>(data);
    if (p.channels_inner) return load<Compute, kVec>(values + i);
    V repeated;
#pragma unroll
    for (int k = 0; k < kVec; ++k) repeated.at[k] = values[row];
    return repeated;
  }

  __device__ V input(const Operand& o) const { return load<Compute, kVec>(pointer<Input>(o, batch, row, i)); }
  __device__ V state(const Operand& o) const { return load<Compute, kVec>(pointer<State>(o, batch, row, i)); }
  __device__ void write_input(const Operand& o, const V& v) const {
    if (o.data) store<Compute, kVec>(pointer<Input>(o, batch, row, i), v);
  }
  __device__ void write_state(const Operand& o, const V& v) const {
    if (o.data) store<Compute, kVec>(pointer<State>(o, batch, row, i), v);
  }

  // The scan. The host sees to it that kVec is 1 for more than one step.
  __device__ void forward(const V& r) const {
    const V A = this->A(), bias = this->bias();
    V h = state(p.h0);
    if (kVec == 1 && p.steps != 1) {
      const Input *x = pointer<Input>(p.x, batch, row, i), *dt = pointer<Input>(p.dt, batch, row, i);
      const Input* B = pointer<Input>(p.B, batch, row, i);
      State* states = pointer<State>(p.states, batch, row, i);
      h.at[0] = scan(
          p.steps, h.at[0], A.at[0], bias.at[0], p.with_softplus, p.zoh,
          [&](int64_t t, Compute& x_t, Compute& dt_t, Compute& B_t) {
            x_t = static_cast<Compute>(x[t * p.x.step]);
            dt_t = static_cast<Compute>(dt[t * p.dt.step]);
            B_t = static_cast<Compute>(B[t * p.B.step]);
          },
          [&](int64_t t, Compute h_t) {
            if (p.all_states) states[t * p.states.step] = static_cast<State>(h_t);
          });
      if (p.all_states) return;
    } else {
      const V x = input(p.x), dt = input(p.dt), B = input(p.B);
#pragma unroll
      for (int k = 0; k < kVec; ++k) {
        h.at[k] = update(h.at[k], x.at[k] * r.at[k], dt.at[k] * r.at[k], bias.at[k], A.at[k], B.at[k] * r.at[k],
                         p.with_softplus, p.zoh);
      }
    }
    write_state(p.states, h);
  }

  // One step back. Writes all gradients but that of x, which it returns for r x; `by_r` is the gradient of r.
  __device__ V backward_step(const MapGradients& out, const V& r, V& by_r, V& by_A, V& by_bias) const {
    const V A = this->A(), bias = this->bias(), grad = state(p.states), h = state(p.h0);
    const V x = input(p.x), dt = input(p.dt), B = input(p.B);
    V by_x, by_dt, by_B, by_h;
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      const Compute s = r.at[k];
      const Gradients<Compute> g = update_backward(grad.at[k], h.at[k], x.at[k] * s, dt.at[k] * s, bias.at[k], A.at[k],
                                                   B.at[k] * s, p.with_softplus, p.zoh);
      by_r.at[k] = g.x * x.at[k] + g.dt * dt.at[k] + g.B * B.at[k];
      by_x.at[k] = g.x;
      by_dt.at[k] = g.dt * s;
      by_B.at[k] = g.B * s;
      by_h.at[k] = g.h;
      by_A.at[k] = g.A;
      by_bias.at[k] = g.dt;
    }
    write_input(out.dt, by_dt);
    write_input(out.B, by_B);
    write_state(out.h0, by_h);
    return by_x;
  }

  // All steps back, without normalisation.
  __device__ void backward(const MapGradients& out, V& by_A, V& by_bias) const {
    if (kVec > 1 || p.steps == 1) {
      V one, unused;
#pragma unroll
      for (int k = 0; k < kVec; ++k) one.at[k] = 1;
      write_input(out.x, backward_step(out, one, unused, by_A, by_bias));
      return;
    }
    const Input *x = pointer<Input>(p.x, batch, row, i), *dt = pointer<Input>(p.dt, batch, row, i);
    const Input* B = pointer<Input>(p.B, batch, row, i);
    const State* states = pointer<State>(p.states, batch, row, i);
    Compute sum_A = 0, sum_bias = 0;
    V by_h;
    by_h.at[0] = scan_backward(
        p.steps, state(p.h0).at[0], p.all_states ? Compute(0) : static_cast<Compute>(*states), A().at[0], bias().at[0],
        p.with_softplus, p.zoh,
        [&](int64_t t, Compute& x_t, Compute& dt_t, Compute& B_t) {
          x_t = static_cast<Compute>(x[t * p.x.step]);
          dt_t = static_cast<Compute>(dt[t * p.dt.step]);
          B_t = static_cast<Compute>(B[t * p.B.step]);
        },
        [&](int64_t t, Compute& grad) {
          if (p.all_states) grad += static_cast<Compute>(states[t * p.states.step]);
        },
        [&](int64_t t, const Gradients<Compute>& g) {
          if (out.x.data) pointer<Input>(out.x, batch, row, i)[t * out.x.step] = static_cast<Input>(g.x);
          if (out.dt.data) pointer<Input>(out.dt, batch, row, i)[t * out.dt.step] = static_cast<Input>(g.dt);
          if (out.B.data) pointer<Input>(out.B, batch, row, i)[t * out.B.step] = static_cast<Input>(g.B);
          sum_A += g.A;
          sum_bias += g.dt;
        });
    by_A.at[0] = sum_A;
    by_bias.at[0] = sum_bias;
    write_state(out.h0, by_h);
  }
};

// Channels inner. `group` (a power of two up to 32) lanes share a pixel; a thread has kChunks * kVec channels of it.
// sums: (blocks, 2, channels).
template <typename State, typename Input, typename Compute, int kVec, int kChunks, bool kBackward>
__global__ void __launch_bounds__(kThreads) channels_inner_kernel(const Problem p, const MapGradients out, int group) {
  using P = Place<State, Input, Compute, kVec>;
  using V = Values<Compute, kVec>;
  const int lane = threadIdx.x % group, slot = threadIdx.x / group, slots = kThreads / group;
  const int64_t pixels = p.batches * p.rows;
  Compute sums[2][kChunks][kVec] = {};
  // All threads of a block go round together, since the lanes of a warp talk to each other.
  for (int64_t first = int64_t(blockIdx.x) * slots; first < pixels; first += int64_t(gridDim.x) * slots) {
    const bool active = first + slot < pixels;
    const int64_t n = active ? first + slot : pixels - 1;
    const int64_t batch = p.batches == 1 ? 0 : n / p.rows, row = n - batch * p.rows;
    Compute scale = 1;
    if (p.normalize) {
      Compute squares = 0;
      for (int c = 0; c < kChunks; ++c) {
        const int64_t i = (int64_t(c) * group + lane) * kVec;
        if (i >= p.inner) continue;
        const V x = P{p, batch, row, i}.input(p.x);
#pragma unroll
        for (int k = 0; k < kVec; ++k) squares += x.at[k] * x.at[k];
      }
      squares = add_lanes(squares, group);
      scale = 1 / std::sqrt(squares / p.inner + static_cast<Compute>(p.norm_eps));
    }
    V r, by_x[kChunks];
#pragma unroll
    for (int k = 0; k < kVec; ++k) r.at[k] = scale;
    Compute sum_by_r = 0;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t i = (int64_t(c) * group + lane) * kVec;
      if (!active || i >= p.inner) continue;
      const P place{p, batch, row, i};
      if (!kBackward) {
        place.forward(r);
        continue;
      }
      V by_A, by_bias;
      if (p.normalize) {
        V by_r;
        by_x[c] = place.backward_step(out, r, by_r, by_A, by_bias);
#pragma unroll
        for (int k = 0; k < kVec; ++k) sum_by_r += by_r.at[k];
      } else {
        place.backward(out, by_A, by_bias);
      }
#pragma unroll
      for (int k = 0; k < kVec; ++k) {
        sums[0][c][k] += by_A.at[k];
        sums[1][c][k] += by_bias.at[k];
      }
    }
    if (!kBackward || !p.normalize) continue;
    const Compute factor = -add_lanes(sum_by_r, group) * scale * scale * scale / p.inner;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int64_t i = (int64_t(c) * group + lane) * kVec;
      if (!active || i >= p.inner) continue;
      const P place{p, batch, row, i};
      const V x = place.input(p.x);
      V result;
#pragma unroll
      for (int k = 0; k < kVec; ++k) result.at[k] = by_x[c].at[k] * scale + x.at[k] * factor;
      place.write_input(out.x, result);
    }
  }
  if (!kBackward || out.sums == nullptr) return;
  __shared__ Compute shared[kThreads];
  Compute* block_sums = static_cast<Compute*>(out.sums) + int64_t(blockIdx.x) * 2 * p.inner;
  for (int which = 0; which < 2; ++which) {
    for (int c = 0; c < kChunks; ++c) {
      for (int k = 0; k < kVec; ++k) {
        shared[threadIdx.x] = sums[which][c][k];
        __syncthreads();
        const int64_t i = (int64_t(c) * group + lane) * kVec + k;
        if (slot == 0 && i < p.inner) {
          Compute total = 0;
          for (int s = 0; s < slots; ++s) total += shared[s * group + lane];
          block_sums[which * p.inner + i] = total;
        }
        __syncthreads();
      }
    }
  }
}

// Pixels inner, without normalisation: a warp per piece of a channel. sums: (batches, rows, pieces, 2).
template <typename State, typename Input, typename Compute, int kVec, bool kBackward>
__global__ void __launch_bounds__(kThreads)
    pixels_inner_kernel(const Problem p, const MapGradients out, int64_t pieces) {
  using V = Values<Compute, kVec>;
  const int lane = threadIdx.x % kWarp;
  const int64_t task = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (task >= p.batches * p.rows * pieces) return;
  const int64_t n = task / pieces, batch = n / p.rows, row = n % p.rows;
  V one;
#pragma unroll
  for (int k = 0; k < kVec; ++k) one.at[k] = 1;
  Compute sum_A = 0, sum_bias = 0;
  for (int step = 0; step < kPieceSteps; ++step) {
    const int64_t i = ((task % pieces * kPieceSteps + step) * kWarp + lane) * kVec;
    if (i >= p.inner) break;
    const Place<State, Input, Compute, kVec> place{p, batch, row, i};
    if (!kBackward) {
      place.forward(one);
      continue;
    }
    V by_A, by_bias;
    place.backward(out, by_A, by_bias);
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      sum_A += by_A.at[k];
      sum_bias += by_bias.at[k];
    }
  }
  if (!kBackward || out.sums == nullptr) return;
  sum_A = add_lanes(sum_A, kWarp);
  sum_bias = add_lanes(sum_bias, kWarp);
  if (lane == 0) {
    static_cast<Compute*>(out.sums)[2 * task] = sum_A;
    static_cast<Compute*>(out.sums)[2 * task + 1] = sum_bias;
  }
}

// Pixels inner, normalised: a thread goes down all channels of its pixels, once for r, once for the update or its
// gradients, and in the backward pass once more for the gradient of x. sums: (batches, rows, warps, 2).
template <typename State, typename Input, typename Compute, int kVec, bool kBackward>
__global__ void __launch_bounds__(kThreads)
    normalized_pixels_kernel(const Problem p, const MapGradients out, int64_t warps) {
  using P = Place<State, Input, Compute, kVec>;
  using V = Values<Compute, kVec>;
  const int lane = threadIdx.x % kWarp;
  const int64_t task = (int64_t(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
  if (task >= p.batches * warps) return;
  const int64_t batch = task / warps, warp = task % warps, wanted = (warp * kWarp + lane) * kVec;
  const bool active = wanted < p.inner;
  const int64_t i = active ? wanted : 0;  // idle lanes stay, for the sums over the warp
  V r = {}, sum_by_r = {};
  for (int64_t row = 0; row < p.rows; ++row) {
    const V x = P{p, batch, row, i}.input(p.x);
#pragma unroll
    for (int k = 0; k < kVec; ++k) r.at[k] += x.at[k] * x.at[k];
  }
#pragma unroll
  for (int k = 0; k < kVec; ++k) r.at[k] = 1 / std::sqrt(r.at[k] / p.rows + static_cast<Compute>(p.norm_eps));
  for (int64_t row = 0; row < p.rows; ++row) {
    const P place{p, batch, row, i};
    if (!kBackward) {
      if (active) place.forward(r);
      continue;
    }
    V by_A = {}, by_bias = {}, by_r = {};
    if (active) place.backward_step(out, r, by_r, by_A, by_bias);
    Compute sum_A = 0, sum_bias = 0;
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      sum_by_r.at[k] += by_r.at[k];
      sum_A += by_A.at[k];
      sum_bias += by_bias.at[k];
    }
    if (out.sums == nullptr) continue;
    sum_A = add_lanes(sum_A, kWarp);
    sum_bias = add_lanes(sum_bias, kWarp);
    if (lane == 0) {
      Compute* sums = static_cast<Compute*>(out.sums) + ((batch * p.rows + row) * warps + warp) * 2;
      sums[0] = sum_A;
      sums[1] = sum_bias;
    }
  }
  if (!kBackward || !active || out.x.data == nullptr) return;
  const MapGradients nothing{};
  for (int64_t row = 0; row < p.rows; ++row) {
    const P place{p, batch, row, i};
    V by_r, by_A, by_bias;
    // Computed again rather than kept: storage in a half type would round it, a float buffer would cost memory.
    V by_x = place.backward_step(nothing, r, by_r, by_A, by_bias);
    const V x = place.input(p.x);
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
      const Compute s = r.at[k];
      by_x.at[k] = by_x.at[k] * s - x.at[k] * sum_by_r.at[k] * s * s * s / p.rows;
    }
    place.write_input(out.x, by_x);
  }
}

}  // namespace cuda
}  // namespace s6la
