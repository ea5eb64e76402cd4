// The state update, its derivatives and the scan of one element, once, for host and device.
//
// T is float or double on the device, and double or a vector of floats on the host; numbers.h and cpu/vector.h have
// the elementary functions for them. No include guard: the CPU kernels include this once per instruction set.
//
//   Δ = softplus(dt + bias)     h' = exp(Δ A) h + gain B x     gain = Δ (euler) or (exp(Δ A) - 1) / A (zoh)
//
// softplus and its derivative are written with exp(-|v|), which neither overflows nor loses the digits of small steps.

template <typename T>
S6LA_INLINE T step_size(T dt, T bias, bool with_softplus) {
  const T v = dt + bias;
  if (!with_softplus) return v;
  return select(v > 0, v, constant<T>(0)) + log1p_of_unit(exponential(-absolute(v)));
}

template <typename T>
S6LA_INLINE T softplus_derivative(T v) {
  const T e = exponential(-absolute(v));
  return divide_by_unit(select(v >= 0, constant<T>(1), e), e + 1);
}

template <typename T>
S6LA_INLINE T update(T h, T x, T dt, T bias, T A, T B, bool with_softplus, bool zoh) {
  const T delta = step_size(dt, bias, with_softplus);
  const T z = delta * A;
  T gain = delta;
  if (zoh) gain = exponential_minus_one(z) / A;
  return exponential(z) * h + gain * B * x;
}

// Derivative of (exp(delta A) - 1) / A for A. The terms of the closed form cancel for small z = delta A: a Taylor
// series there, to the last digit of a double.
template <typename T>
S6LA_INLINE T gain_derivative(T delta, T z, T decay, T gain, T A) {
  using S = typename ScalarOf<T>::type;
  T series = constant<T>(1);
  for (int k = 12; k >= 0; --k) series = z * S((k + 2.0) / ((k + 1.0) * (k + 3.0))) * series + 1;
  return select(absolute(z) < S(0.5), delta * delta * series * S(0.5), (delta * decay - gain) / A);
}

template <typename T>
struct Gradients {
  T h, x, dt, A, B;
};

// Gradients of one update, given that of its result. The gradient of the bias is that of dt.
template <typename T>
S6LA_INLINE Gradients<T> update_backward(T grad, T h, T x, T dt, T bias, T A, T B, bool with_softplus, bool zoh) {
  const T delta = step_size(dt, bias, with_softplus);
  const T z = delta * A;
  const T decay = exponential(z);
  const T written = grad * B * x;
  Gradients<T> out;
  out.h = grad * decay;
  const T kept = out.h * h;
  if (zoh) {
    const T gain = exponential_minus_one(z) / A;
    out.x = grad * gain * B;
    out.B = grad * gain * x;
    out.A = delta * kept + gain_derivative(delta, z, decay, gain, A) * written;
    out.dt = A * kept + decay * written;
  } else {
    out.x = grad * delta * B;
    out.B = grad * delta * x;
    out.A = delta * kept;
    out.dt = A * kept + written;
  }
  if (with_softplus) out.dt = out.dt * softplus_derivative(dt + bias);
  return out;
}

// The scan of one element. inputs(t, x, dt, B) reads step t, state(t, h) takes the state after it.
template <typename T, typename Inputs, typename State>
S6LA_INLINE T scan(int64_t steps, T h, T A, T bias, bool with_softplus, bool zoh, Inputs inputs, State state) {
  for (int64_t t = 0; t < steps; ++t) {
    T x, dt, B;
    inputs(t, x, dt, B);
    h = update(h, x, dt, bias, A, B, with_softplus, zoh);
    state(t, h);
  }
  return h;
}

// States that the backward pass keeps at once. A longer scan is recomputed from h0 segment by segment, the last one
// first: nothing but the inputs is stored between the passes, whatever the number of steps.
constexpr int kSegment = 16;

// Backward through the scan of one element. incoming(t, grad) adds what flows into the state after step t from
// outside, outgoing(t, gradients) takes the gradients of step t. Returns the gradient of h0.
template <typename T, typename Inputs, typename Incoming, typename Outgoing>
S6LA_INLINE T scan_backward(int64_t steps, T h0, T grad, T A, T bias, bool with_softplus, bool zoh, Inputs inputs,
                            Incoming incoming, Outgoing outgoing) {
  T before[kSegment];  // the state that each step of the segment started from
  for (int64_t end = steps; end > 0;) {
    const int64_t begin = (end - 1) / kSegment * kSegment;
    T h = h0, x, dt, B;
    for (int64_t t = 0; t < end - 1; ++t) {
      if (t >= begin) before[t - begin] = h;
      inputs(t, x, dt, B);
      h = update(h, x, dt, bias, A, B, with_softplus, zoh);
    }
    before[end - 1 - begin] = h;
    for (int64_t t = end - 1; t >= begin; --t) {
      inputs(t, x, dt, B);
      incoming(t, grad);
      const Gradients<T> g = update_backward(grad, before[t - begin], x, dt, bias, A, B, with_softplus, zoh);
      outgoing(t, g);
      grad = g.h;
    }
    end = begin;
  }
  return grad;
}
