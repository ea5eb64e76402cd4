// Vectors of floats for one instruction set: arithmetic, exponential and logarithm, loads and stores. Included once per
// instruction set, inside a namespace of its own and under a target pragma. The including file defines
// S6LA_REGISTER_BYTES, and S6LA_VEC as the Pair, or Pair of Pairs, of registers that is handled at once: an update is a
// long chain of dependent instructions, and several of them side by side keep the processor busy while each waits.

typedef float Register __attribute__((vector_size(S6LA_REGISTER_BYTES)));
typedef int32_t RegisterMask __attribute__((vector_size(S6LA_REGISTER_BYTES)));
typedef uint32_t RegisterBits __attribute__((vector_size(S6LA_REGISTER_BYTES)));
typedef uint16_t RegisterHalfBits __attribute__((vector_size(S6LA_REGISTER_BYTES / 2)));

constexpr int kRegisterLanes = S6LA_REGISTER_BYTES / sizeof(float);

template <typename Part>
struct Pair {
  Part low, high;
};

using Vec = S6LA_VEC;

template <>
struct ScalarOf<Vec> {
  using type = float;
};

// How a compute type is processed: floats as vectors, doubles (which serve checks, not speed) one by one.
template <typename Compute>
struct NumberOf {
  using type = Vec;
};
template <>
struct NumberOf<double> {
  using type = double;
};

template <typename Number>
constexpr int kLanes = sizeof(Number) / sizeof(typename ScalarOf<Number>::type);

#define S6LA_OPERATOR(symbol)                                                                        \
  template <typename Part>                                                                           \
  S6LA_INLINE auto operator symbol(Pair<Part> a, Pair<Part> b)->Pair<decltype(a.low symbol b.low)> { \
    return {a.low symbol b.low, a.high symbol b.high};                                               \
  }                                                                                                  \
  template <typename Part>                                                                           \
  S6LA_INLINE auto operator symbol(Pair<Part> a, float b)->Pair<decltype(a.low symbol b)> {          \
    return {a.low symbol b, a.high symbol b};                                                        \
  }
S6LA_OPERATOR(+)
S6LA_OPERATOR(-)
S6LA_OPERATOR(*)
S6LA_OPERATOR(/)
S6LA_OPERATOR(<)
S6LA_OPERATOR(>)
S6LA_OPERATOR(>=)
#undef S6LA_OPERATOR

template <typename Part>
S6LA_INLINE Pair<Part> operator-(Pair<Part> v) {
  return {-v.low, -v.high};
}

S6LA_INLINE void fill(Register& v, float value) { v = Register{} + value; }

template <typename Part>
S6LA_INLINE void fill(Pair<Part>& v, float value) {
  fill(v.low, value);
  fill(v.high, value);
}

template <>
S6LA_INLINE Vec constant<Vec>(float value) {
  Vec v;
  fill(v, value);
  return v;
}

S6LA_INLINE Register select(RegisterMask mask, Register a, Register b) { return mask ? a : b; }

template <typename PartMask, typename Part>
S6LA_INLINE Pair<Part> select(Pair<PartMask> mask, Pair<Part> a, Pair<Part> b) {
  return {select(mask.low, a.low, b.low), select(mask.high, a.high, b.high)};
}

// Elementary functions: polynomials (Chebyshev fits) after range reduction, right to 2 units in the last place.

S6LA_INLINE Register absolute(Register v) { return (Register)((RegisterBits)v & 0x7fffffffu); }

// exp(z) = 2^n exp(r) with z = n ln 2 + r and |r| <= ln 2 / 2. Returns exp(r) - 1, and 2^n in `scale`. No float is cast
// to an integer, which a NaN could not be: adding `magic` rounds z / ln 2 and leaves n in the lowest bits. Where n is
// not the exponent of a normal float the result is meaningless, and replaced by the callers.
S6LA_INLINE Register reduced_exponential(Register z, Register& scale) {
  const float magic = 12582912.f;  // 1.5 * 2^23
  const Register shifted = z * 1.44269504f + magic;
  const Register n = shifted - magic;
  scale = (Register)(((RegisterBits)shifted - 0x4b400000u + 127u) << 23);
  const Register r = (z - n * 0.693145752f) - n * 1.42860682e-6f;
  const Register square = r * r;
  const Register q = (square * 0.00139337f + (r * 0.00836318f + 0.04166646f)) * square + (r * 0.16666577f + 0.5f);
  return q * square + r;
}

constexpr float kSmallest = -87.3f, kLargest = 88.37f;  // exp() is a normal float between them

S6LA_INLINE Register exponential(Register z) {
  Register scale;
  const Register p = reduced_exponential(z, scale);
  const Register result = z < kSmallest ? Register{} : scale * p + scale;
  return z > kLargest ? Register{} + INFINITY : result;
}

S6LA_INLINE Register exponential_minus_one(Register z) {
  Register scale;
  const Register p = reduced_exponential(z, scale);
  const Register result = z < kSmallest ? Register{} - 1 : scale * p + (scale - 1);
  return z > kLargest ? Register{} + INFINITY : result;
}

// log(1 + e) for 0 <= e <= 1, as 2 artanh(e / (2 + e)): no range to reduce, and small e keep their digits.
S6LA_INLINE Register log1p_of_unit(Register e) {
  const Register s = e / (e + 2);
  const Register w = s * s;
  const Register q = (w * 0.26867548f + 0.28233956f) * (w * w) + (w * 0.40007671f + 0.6666664f);
  return s * w * q + (s + s);
}

#define S6LA_FUNCTION(name)                   \
  template <typename Part>                    \
  S6LA_INLINE Pair<Part> name(Pair<Part> v) { \
    return {name(v.low), name(v.high)};       \
  }
S6LA_FUNCTION(absolute)
S6LA_FUNCTION(exponential)
S6LA_FUNCTION(exponential_minus_one)
S6LA_FUNCTION(log1p_of_unit)
#undef S6LA_FUNCTION

// Memory. One register at a time: a copy of a whole Vec would be made of smaller pieces, and wait for them.

S6LA_INLINE void load(const double* p, double& v) { v = *p; }
S6LA_INLINE void store(double* p, double v) { *p = v; }

S6LA_INLINE void load(const float* p, Register& v) { std::memcpy(&v, p, sizeof(v)); }
S6LA_INLINE void store(float* p, Register v) { std::memcpy(p, &v, sizeof(v)); }

// bfloat16 is the upper half of a float.
S6LA_INLINE void load(const c10::BFloat16* p, Register& v) {
  RegisterHalfBits bits;
  std::memcpy(&bits, p, sizeof(bits));
  v = (Register)(__builtin_convertvector(bits, RegisterBits) << 16);
}

S6LA_INLINE void store(c10::BFloat16* p, Register v) {
  const RegisterBits bits = (RegisterBits)v;
  const RegisterBits nearest = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // ties to even
  const RegisterBits result = v == v ? nearest : RegisterBits{} + 0x7fc0u;
  const RegisterHalfBits half = __builtin_convertvector(result, RegisterHalfBits);
  std::memcpy(p, &half, sizeof(half));
}

S6LA_INLINE void load(const c10::Half* p, Register& v) {
  float values[kRegisterLanes];
  for (int i = 0; i < kRegisterLanes; ++i) values[i] = static_cast<float>(p[i]);
  load(values, v);
}

S6LA_INLINE void store(c10::Half* p, Register v) {
  float values[kRegisterLanes];
  store(values, v);
  for (int i = 0; i < kRegisterLanes; ++i) p[i] = static_cast<c10::Half>(values[i]);
}

template <typename Storage, typename Part>
S6LA_INLINE void load(const Storage* p, Pair<Part>& v) {
  load(p, v.low);
  load(p + sizeof(Part) / sizeof(float), v.high);
}

template <typename Storage, typename Part>
S6LA_INLINE void store(Storage* p, Pair<Part> v) {
  store(p, v.low);
  store(p + sizeof(Part) / sizeof(float), v.high);
}

// The first `count` lanes from or to memory; the others are loaded as one, which is in the domain of everything.
template <typename Number, typename Storage>
S6LA_INLINE Number load_lanes(const Storage* p, int count) {
  Number v;
  if (count == kLanes<Number>) {
    load(p, v);
  } else {
    Storage padded[kLanes<Number>];
    std::memcpy(padded, p, count * sizeof(Storage));
    std::fill(padded + count, padded + kLanes<Number>, Storage(1.f));
    load(padded, v);
  }
  return v;
}

template <typename Number, typename Storage>
S6LA_INLINE void store_lanes(Storage* p, Number v, int count) {
  if (count == kLanes<Number>) {
    store(p, v);
  } else {
    Storage padded[kLanes<Number>];
    store(padded, v);
    std::memcpy(p, padded, count * sizeof(Storage));
  }
}

// Adds the first `count` lanes to memory.
template <typename Number, typename Compute>
S6LA_INLINE void add_lanes(Compute* p, Number v, int count) {
  store_lanes<Number>(p, load_lanes<Number>(p, count) + v, count);
}

template <typename Number>
S6LA_INLINE double lane_sum(Number v, int count) {
  typename ScalarOf<Number>::type values[kLanes<Number>];
  store(values, v);
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += values[i];
  return sum;
}

// The same in the number's own precision and in fewer steps, for sums of a few numbers.
S6LA_INLINE Register add_parts(Register v) { return v; }

template <typename Part>
S6LA_INLINE Register add_parts(Pair<Part> v) {
  return add_parts(v.low + v.high);
}

S6LA_INLINE double first_lanes_sum(double v, int) { return v; }
S6LA_INLINE float first_lanes_sum(Vec v, int count) {
  if (count < kLanes<Vec>) return static_cast<float>(lane_sum(v, count));
  float values[kRegisterLanes];
  store(values, add_parts(v));
  for (int half = kRegisterLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}
