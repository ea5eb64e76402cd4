// The scan as the kernels see it: a set of strided arrays, whatever memory format the tensors had.
//
// Map layout: every operand is (steps, batches, rows, inner) with unit stride on the inner axis. A contiguous map has
// its channels as rows and its pixels as inner axis; a channels-last map has them the other way round
// (channels_inner), so that both are read along memory. Token layout: rows are the channels D, inner is N; x and dt
// have no inner axis and B has no rows.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>

namespace s6la {

using at::Tensor;
using OptionalTensor = c10::optional<Tensor>;

// Strides in elements. `data` is null for a gradient that nobody asked for.
struct Operand {
  void* data = nullptr;
  int64_t step = 0, batch = 0, row = 0;
};

struct Options {
  bool channels_inner;  // map layout: A and bias run along the inner axis, else along the rows
  bool with_softplus, zoh, all_states;
  bool normalize;  // one step of a map only: divide x, dt and B by the root mean square of x over the channels
  double norm_eps;
};

struct Problem : Options {
  int64_t steps, batches, rows, inner;
  const void *A, *bias;  // float or double, dense
  Operand x, dt, B, h0, states;  // states: the result, or in the backward pass its gradient
};

inline Operand operand(const Tensor& t, bool with_steps, bool with_rows) {
  int64_t axis = 0;
  Operand result;
  result.data = t.data_ptr();
  if (with_steps) result.step = t.stride(axis++);
  result.batch = t.stride(axis++);
  if (with_rows) result.row = t.stride(axis);
  return result;
}

inline Operand operand_or_null(const OptionalTensor& t, bool with_steps, bool with_rows) {
  return t.has_value() ? operand(*t, with_steps, with_rows) : Operand();
}

// `states` is the tensor of all states or of the last one; A's rank tells the layout, as in the public functions.
inline Problem make_problem(const Tensor& h0, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                            const Tensor& bias, const Tensor& states, const Options& options) {
  const bool token = A.dim() == 2;
  Problem p{options};
  p.steps = x.size(0);
  p.batches = h0.size(0);
  p.rows = h0.size(1);
  p.inner = h0.size(2);
  p.A = A.data_ptr();
  p.bias = bias.data_ptr();
  p.x = operand(x, true, true);
  p.dt = operand(dt, true, true);
  p.B = operand(B, true, !token);
  p.h0 = operand(h0, false, true);
  p.states = operand(states, options.all_states, true);
  return p;
}

// Gradients that somebody asked for, in kernel form; those of A and bias dense in the compute type.
struct Results {
  OptionalTensor x, dt, A, B, h0, bias;
};

}  // namespace s6la

// The functions that each device implements, in the form that mmcv's device registry dispatches on: the first tensor's
// device decides. h0, x, dt, B and the gradients are in kernel form (above), A and bias dense in the compute type.
void selective_scan_forward_impl(at::Tensor h0, at::Tensor x, at::Tensor dt, at::Tensor A, at::Tensor B,
                                 at::Tensor bias, s6la::Options options, at::Tensor states);

void selective_scan_backward_impl(at::Tensor grad, at::Tensor h0, at::Tensor x, at::Tensor dt, at::Tensor A,
                                  at::Tensor B, at::Tensor bias, s6la::Options options, s6la::Results results);
