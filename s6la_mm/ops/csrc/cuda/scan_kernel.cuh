// The scan of a map over any number of steps. A thread has one number of the state, and everything is stored in the
// compute type: networks update their maps step by step, so this serves `selective_scan` and not speed.
#pragma once

#include "launch.h"
#include "vector.cuh"

namespace s6la {
namespace cuda {

constexpr int kScanThreads = 256;

// One number of a map, whatever the arrangement.
template <typename Compute>
struct ScanPlace {
  const Problem& p;
  int64_t batch, row, i;

  __device__ ScanPlace(const Problem& p, int64_t number)
      : p(p), batch(number / p.inner / p.rows), row(number / p.inner % p.rows), i(number % p.inner) {}

  __device__ Compute* at(const Operand& o) const {
    return static_cast<Compute*>(o.data) + batch * o.batch + row * o.row + i;
  }
  __device__ Compute parameter(const void* data) const {
    return static_cast<const Compute*>(data)[p.channels_inner ? i : row];
  }
};

template <typename Compute>
__global__ void __launch_bounds__(kScanThreads) scan_forward_kernel(const Problem p) {
  const int64_t number = int64_t(blockIdx.x) * kScanThreads + threadIdx.x;
  if (number >= p.batches * p.rows * p.inner) return;
  const ScanPlace<Compute> place(p, number);
  const Compute *x = place.at(p.x), *dt = place.at(p.dt), *B = place.at(p.B);
  Compute* states = place.at(p.states);
  const Compute last = scan(
      p.steps, *place.at(p.h0), place.parameter(p.A), place.parameter(p.bias), p.with_softplus, p.zoh,
      [&](int64_t t, Compute& x_t, Compute& dt_t, Compute& B_t) {
        x_t = x[t * p.x.step];
        dt_t = dt[t * p.dt.step];
        B_t = B[t * p.B.step];
      },
      [&](int64_t t, Compute h) {
        if (p.all_states) states[t * p.states.step] = h;
      });
  if (!p.all_states) *states = last;
}

// sums: (2, batches, rows, inner), or null.
template <typename Compute>
__global__ void __launch_bounds__(kScanThreads)
    scan_backward_kernel(const Problem p, const MapGradients out, Compute* sums) {
  const int64_t number = int64_t(blockIdx.x) * kScanThreads + threadIdx.x, all = p.batches * p.rows * p.inner;
  if (number >= all) return;
  const ScanPlace<Compute> place(p, number);
  const Compute *x = place.at(p.x), *dt = place.at(p.dt), *B = place.at(p.B), *grads = place.at(p.states);
  Compute sum_A = 0, sum_bias = 0;
  const Compute by_h = scan_backward(
      p.steps, *place.at(p.h0), p.all_states ? Compute(0) : *grads, place.parameter(p.A), place.parameter(p.bias),
      p.with_softplus, p.zoh,
      [&](int64_t t, Compute& x_t, Compute& dt_t, Compute& B_t) {
        x_t = x[t * p.x.step];
        dt_t = dt[t * p.dt.step];
        B_t = B[t * p.B.step];
      },
      [&](int64_t t, Compute& grad) {
        if (p.all_states) grad += grads[t * p.states.step];
      },
      [&](int64_t t, const Gradients<Compute>& g) {
        if (out.x.data) place.at(out.x)[t * out.x.step] = g.x;
        if (out.dt.data) place.at(out.dt)[t * out.dt.step] = g.dt;
        if (out.B.data) place.at(out.B)[t * out.B.step] = g.B;
        sum_A += g.A;
        sum_bias += g.dt;
      });
  if (out.h0.data) *place.at(out.h0) = by_h;
  if (sums == nullptr) return;
  sums[number] = sum_A;
  sums[all + number] = sum_bias;
}

}  // namespace cuda
}  // namespace s6la
