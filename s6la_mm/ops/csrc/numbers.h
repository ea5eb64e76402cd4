// The numbers that update.h calculates with, and their elementary functions: scalars here, vectors in cpu/vector.h.
// No include guard: the CPU kernels include this once per instruction set.

template <typename T>
struct ScalarOf {
  using type = T;
};

// A number in every lane.
template <typename T>
S6LA_INLINE T constant(typename ScalarOf<T>::type value) {
  return T{} + value;
}

// a / b where 1 <= b <= 2, which a GPU has an instruction for.
template <typename T>
S6LA_INLINE T divide_by_unit(T a, T b) {
  return a / b;
}

#define S6LA_SCALAR_FUNCTIONS(T)                                     \
  S6LA_INLINE T select(bool mask, T a, T b) { return mask ? a : b; } \
  S6LA_INLINE T absolute(T v) { return std::abs(v); }                \
  S6LA_INLINE T exponential(T v) { return std::exp(v); }             \
  S6LA_INLINE T exponential_minus_one(T v) { return std::expm1(v); } \
  S6LA_INLINE T log1p_of_unit(T v) { return std::log1p(v); } /* where 0 <= v <= 1 */

S6LA_SCALAR_FUNCTIONS(float)
S6LA_SCALAR_FUNCTIONS(double)
#undef S6LA_SCALAR_FUNCTIONS
