// The kernel for one step of a map. Every operand is read or written once, kVec numbers by each thread at a time.
//
// A block covers `lanes` threads side by side along the inner axis times `slots` rows. That axis is
//
//   the channels (channels_inner): the lanes of a group have all channels of a pixel, the slots are pixels;
//   the pixels: a lane keeps its pixels, the slots are the channels.
//
// The root mean square over the channels is added up over the lanes, or over the slots: in registers inside a warp,
// through shared memory between the warps of a block. The sums for A and the bias run over the pixels, that is over the
// other ones of the two, and over the tiles that a block goes through; each block writes one partial sum per channel,
// which the host adds up. Always in the same order: no atomics, the same result every time.
#pragma once

#include "launch.h"
#include "vector.cuh"

namespace s6la {
namespace cuda {

// Strides in bytes. Those of a row fit 32 bits, so that an address costs one multiplication: the host sees to it.
struct MapArray {
  char* data;
  int64_t batch;
  int row;
  bool wide;  // kVec numbers can be read or written at once, wherever they start
};

// Divides a number below 2^31 by one multiplication: an integer division takes some twenty instructions.
struct Divisor {
  unsigned factor;
  int shift;

  __device__ unsigned divide(unsigned number) const {
    return static_cast<unsigned>(uint64_t(number) * factor >> shift);
  }
};

// factor = 2^shift / divisor, rounded up, where 2^(shift - 31) is the least power of two that is not below the divisor.
inline Divisor make_divisor(uint64_t divisor) {
  int shift = 31;
  while (uint64_t(1) << (shift - 31) < divisor) ++shift;
  return {static_cast<unsigned>(((uint64_t(1) << shift) + divisor - 1) / divisor), shift};
}

template <typename Compute>
struct MapArguments {
  MapArray x, dt, B, h, states, by_x, by_dt, by_B, by_h;
  const void *A, *bias;
  void* sums;
  int64_t inner;
  Compute norm_eps, one_by_channels;
  unsigned batches, rows, chunks, tiles, tiles_of_a_map;
  Divisor by_tiles_of_a_map;
  int log_lanes;
  bool with_softplus, normalize, parameters_wide;
};

// To count the instructions of the usual case (.dev_scripts/make_kernel_table.py), the compiler is told what that is.
#ifdef S6LA_USUAL_CASE
#define S6LA_USUALLY(value, usual) (usual)
#else
#define S6LA_USUALLY(value, usual) (value)
#endif

template <typename Compute>
__device__ __forceinline__ Compute add_lanes(Compute v, int from, int to) {
  for (int offset = from; offset < to; offset *= 2) v += __shfl_xor_sync(0xffffffffu, v, offset, kWarp);
  return v;
}

template <typename Compute, int n>
__device__ __forceinline__ Vec<Compute, n> add_lanes(Vec<Compute, n> v, int from, int to) {
#pragma unroll
  for (int k = 0; k < n; ++k) v.at[k] = add_lanes(v.at[k], from, to);
  return v;
}

// Numbers per warp that are added up over the warps of a block: a Vec for each of its lanes.
constexpr int kSharedBytes = 4096;

// finish(sum of v over all slots), calculated by one warp for all. Between two calls with the same `shared`, the
// threads of the block must meet elsewhere.
template <typename Compute, int n, typename Finish>
__device__ __forceinline__ Vec<Compute, n> add_slots(Vec<Compute, n> v, int lanes, Vec<Compute, n>* shared,
                                                     Finish finish) {
  const int thread = threadIdx.x, lane = thread & (lanes - 1);
  v = add_lanes(v, lanes, kWarp);
  if (thread % kWarp < lanes) shared[thread / kWarp * lanes + lane] = v;
  __syncthreads();
  if (S6LA_USUALLY(thread < lanes, false)) {  // one of the warps, so hardly of account
    for (int warp = 1; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) v = v + shared[warp * lanes + lane];
    for (int k = 0; k < n; ++k) v.at[k] = finish(v.at[k]);
    shared[lane] = v;
  }
  __syncthreads();
  return shared[lane];
}

// kZoh: known to the compiler, since the derivatives of zero-order hold take twice the registers of the others.
template <typename State, typename Input, bool kChannelsInner, bool kBackward, bool kZoh>
__global__ void __launch_bounds__(kMapThreads, kBackward ? (kZoh ? 2 : 3) : 4)
    map_kernel(const MapArguments<ComputeOf<State>> p) {
  using Compute = ComputeOf<State>;
  constexpr int n = kVec<Compute>;
  using V = Vec<Compute, n>;
  __shared__ V shared[2][kSharedBytes / sizeof(V)];
  const int log_lanes = S6LA_USUALLY(p.log_lanes, 3), lanes = 1 << log_lanes, lane = threadIdx.x & (lanes - 1);
  const int slot = threadIdx.x >> log_lanes, slots = blockDim.x >> log_lanes;
  const bool one_chunk = S6LA_USUALLY(p.chunks == 1, true), one_batch = S6LA_USUALLY(p.batches == 1, kChannelsInner);
  const bool normalize = S6LA_USUALLY(p.normalize, true), with_softplus = S6LA_USUALLY(p.with_softplus, true);
  const unsigned chunk = one_chunk ? 0 : blockIdx.x % p.chunks;
  const unsigned first = one_chunk ? blockIdx.x : blockIdx.x / p.chunks;
  const unsigned stride = one_chunk ? gridDim.x : gridDim.x / p.chunks;
  const int64_t channels = kChannelsInner ? p.inner : p.rows;

  const int64_t channel = kChannelsInner ? (int64_t(chunk) * lanes + lane) * n : int64_t(chunk) * slots + slot;
  V A{}, bias{};
  if (channel < channels) {
    const Compute* A_data = static_cast<const Compute*>(p.A) + channel;
    const Compute* bias_data = static_cast<const Compute*>(p.bias) + channel;
    if constexpr (kChannelsInner) {
      const int left = S6LA_USUALLY(static_cast<int>(channels - channel < n ? channels - channel : n), n);
      A = load<Compute, n>(A_data, S6LA_USUALLY(p.parameters_wide, true), left);
      bias = load<Compute, n>(bias_data, S6LA_USUALLY(p.parameters_wide, true), left);
    } else {
      A = V::all(*A_data);
      bias = V::all(*bias_data);
    }
  }

  V sum_A{}, sum_bias{};
  // The same tiles for all threads of a block, which meet in the sums. In the forward pass a block has one.
  for (unsigned tile = first; tile < p.tiles; tile += stride) {
    unsigned batch = 0, row;
    int64_t i;
    if constexpr (kChannelsInner) {
      row = tile * slots + slot;
      i = channel;
      if (!one_batch) {
        batch = row / p.rows;
        row -= batch * p.rows;
      }
    } else {
      if (!one_batch) batch = p.by_tiles_of_a_map.divide(tile);
      row = static_cast<unsigned>(channel);
      i = (int64_t(tile - batch * p.tiles_of_a_map) * lanes + lane) * n;
    }
    // Threads beyond the end read zeros and write nothing: the others wait for them in the sums.
    const bool inside = batch < p.batches && row < p.rows && i < p.inner;
    const int left = S6LA_USUALLY(!inside ? 0 : static_cast<int>(p.inner - i < n ? p.inner - i : n), n);
    const auto place = [&](const MapArray& o, int64_t size) {
      char* p_row = o.data + int64_t(static_cast<int>(row)) * o.row + i * size;
      return one_batch ? p_row : p_row + batch * o.batch;
    };
    const auto read = [&](auto storage, const MapArray& o) {
      using Storage = decltype(storage);
      const auto p_first = reinterpret_cast<const Storage*>(place(o, sizeof(Storage)));
      return load<Compute, n>(p_first, S6LA_USUALLY(o.wide, true), left);
    };
    const auto write = [&](auto storage, const MapArray& o, V v) {
      using Storage = decltype(storage);
      if (S6LA_USUALLY(o.data == nullptr, false)) return;
      const auto p_first = reinterpret_cast<Storage*>(place(o, sizeof(Storage)));
      store<Compute, n>(p_first, S6LA_USUALLY(o.wide, true), left, v);
    };

    const V x = read(Input(), p.x), dt = read(Input(), p.dt), B = read(Input(), p.B), h = read(State(), p.h);
    V grad{};
    if constexpr (kBackward) grad = read(State(), p.states);
    // finish(mean of v over the channels)
    const auto over_channels = [&](V v, int which, auto finish) {
      const auto of_sum = [&](Compute total) { return finish(total * p.one_by_channels); };
      if constexpr (kChannelsInner) {
        return V::all(of_sum(add_lanes(sum(v), 1, lanes)));
      } else {
        return add_slots(v, lanes, shared[which], of_sum);
      }
    };
    V r = V::all(1);
    if (normalize) r = over_channels(x * x, 0, [&](Compute mean) { return rsqrt(mean + p.norm_eps); });
    if constexpr (!kBackward) {
      write(State(), p.states, update(h, x * r, dt * r, bias, A, B * r, with_softplus, kZoh));
      continue;
    }
    Gradients<V> g = update_backward(grad, h, x * r, dt * r, bias, A, B * r, with_softplus, kZoh);
    if (left < n) {
      // 0 / 0 where there is no channel, say, which must not reach a sum.
#pragma unroll
      for (int k = 0; k < n; ++k) {
        if (k >= left) g.x.at[k] = g.dt.at[k] = g.B.at[k] = g.A.at[k] = 0;
      }
    }
    if constexpr (kChannelsInner) {
      sum_A = sum_A + g.A;
      sum_bias = sum_bias + g.dt;
    } else {  // all of one channel
      sum_A.at[0] += sum(g.A);
      sum_bias.at[0] += sum(g.dt);
    }
    write(State(), p.by_h, g.h);
    write(Input(), p.by_dt, g.dt * r);
    write(Input(), p.by_B, g.B * r);
    V by_x = g.x;
    if (normalize) {
      const V by_r = over_channels(g.x * x + g.dt * dt + g.B * B, 1, [](Compute mean) { return mean; });
      by_x = (g.x - x * by_r * (r * r)) * r;
    }
    write(Input(), p.by_x, by_x);
  }

  if (!kBackward || p.sums == nullptr) return;
  Compute* sums = static_cast<Compute*>(p.sums) + int64_t(first) * 2 * channels + channel;
  if (kChannelsInner) {
    const auto as_it_is = [](Compute total) { return total; };
    sum_A = add_slots(sum_A, lanes, shared[0], as_it_is);
    sum_bias = add_slots(sum_bias, lanes, shared[1], as_it_is);
    if (slot == 0) {
#pragma unroll
      for (int k = 0; k < n; ++k) {
        if (channel + k >= channels) continue;
        sums[k] = sum_A.at[k];
        sums[channels + k] = sum_bias.at[k];
      }
    }
  } else {
    const Compute by_A = add_lanes(sum_A.at[0], 1, lanes), by_bias = add_lanes(sum_bias.at[0], 1, lanes);
    if (lane == 0 && channel < channels) {
      sums[0] = by_A;
      sums[channels] = by_bias;
    }
  }
}

}  // namespace cuda
}  // namespace s6la
