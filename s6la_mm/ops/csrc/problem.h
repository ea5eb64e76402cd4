// The scan as the kernels see it: a set of strided arrays, whatever memory format the tensors had.
//
// Map layout: every operand is (steps, batches, rows, inner) with unit stride on the inner axis. A contiguous map has
// its channels as rows and its pixels as inner axis; a channels-last map has them the other way round
// (channels_inner), so that both are read along memory. Token layout: rows are the channels D, inner is N; x and dt
// have no inner axis and B has no rows.
#pragma once

#include <cstdint>

namespace s6la {

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
  const void *A, *bias;          // float or double, dense
  Operand x, dt, B, h0, states;  // states: the result, or in the backward pass its gradient
};

}  // namespace s6la
