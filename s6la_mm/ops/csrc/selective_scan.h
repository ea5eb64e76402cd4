// The functions that each device implements, and how tensors become what kernels see (problem.h).
#pragma once

#include <ATen/ATen.h>

#include "problem.h"

namespace s6la {

using at::Tensor;
using OptionalTensor = c10::optional<Tensor>;

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
// device decides. h0, x, dt, B and the gradients are in kernel form, A and bias dense in the compute type.
void selective_scan_forward_impl(at::Tensor h0, at::Tensor x, at::Tensor dt, at::Tensor A, at::Tensor B,
                                 at::Tensor bias, s6la::Options options, at::Tensor states);

void selective_scan_backward_impl(at::Tensor grad, at::Tensor h0, at::Tensor x, at::Tensor dt, at::Tensor A,
                                  at::Tensor B, at::Tensor bias, s6la::Options options, s6la::Results results);
