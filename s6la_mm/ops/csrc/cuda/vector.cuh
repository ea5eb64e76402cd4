// What a thread of the map kernels calculates with: kVec neighbouring numbers, 16 bytes of the compute type, and how
// they are read and written. update.h takes such a vector for its number, so that its branches are one for all of them.
#pragma once

#include <c10/util/BFloat16.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define S6LA_INLINE __host__ __device__ __forceinline__

namespace s6la {
namespace cuda {

#include "../numbers.h"

template <typename T, int n>
struct alignas(sizeof(T) * n) Vec {
  T at[n];

  S6LA_INLINE static Vec all(T value) {
    Vec v;
    for (int k = 0; k < n; ++k) v.at[k] = value;
    return v;
  }

#define S6LA_OPERATOR(Result, symbol)                                  \
  S6LA_INLINE friend Vec<Result, n> operator symbol(Vec a, Vec b) {    \
    Vec<Result, n> result;                                             \
    for (int k = 0; k < n; ++k) result.at[k] = a.at[k] symbol b.at[k]; \
    return result;                                                     \
  }                                                                    \
  S6LA_INLINE friend Vec<Result, n> operator symbol(Vec a, T b) {      \
    Vec<Result, n> result;                                             \
    for (int k = 0; k < n; ++k) result.at[k] = a.at[k] symbol b;       \
    return result;                                                     \
  }
  S6LA_OPERATOR(T, +)
  S6LA_OPERATOR(T, -)
  S6LA_OPERATOR(T, *)
  S6LA_OPERATOR(T, /)
  S6LA_OPERATOR(bool, <)
  S6LA_OPERATOR(bool, >)
  S6LA_OPERATOR(bool, >=)
#undef S6LA_OPERATOR

  S6LA_INLINE friend Vec operator-(Vec v) {
    for (int k = 0; k < n; ++k) v.at[k] = -v.at[k];
    return v;
  }
};

template <typename T, int n>
struct ScalarOf<Vec<T, n>> {
  using type = T;
};

template <typename T, int n>
S6LA_INLINE Vec<T, n> select(Vec<bool, n> mask, Vec<T, n> a, Vec<T, n> b) {
  for (int k = 0; k < n; ++k) a.at[k] = mask.at[k] ? a.at[k] : b.at[k];
  return a;
}

#define S6LA_VECTOR_FUNCTION(name)                       \
  template <typename T, int n>                           \
  S6LA_INLINE Vec<T, n> name(Vec<T, n> v) {              \
    for (int k = 0; k < n; ++k) v.at[k] = name(v.at[k]); \
    return v;                                            \
  }
S6LA_VECTOR_FUNCTION(absolute)
S6LA_VECTOR_FUNCTION(exponential)
S6LA_VECTOR_FUNCTION(exponential_minus_one)
#undef S6LA_VECTOR_FUNCTION

// Right to some units in the last place at a third of the instructions: at the speed of memory, an H200 has time for
// about a hundred per number.
__device__ __forceinline__ float approximate_quotient(float a, float b) { return __fdividef(a, b); }
__device__ __forceinline__ double approximate_quotient(double a, double b) { return a / b; }

// log(1 + e) as 2 artanh(e / (2 + e)), as the CPU kernels do it (cpu/vector.h).
__device__ __forceinline__ float approximate_log1p_of_unit(float e) {
  const float s = __fdividef(e, e + 2), w = s * s;
  const float q = ((w * 0.26867548f + 0.28233956f) * w + 0.40007671f) * w + 0.6666664f;
  return s * (w * q + 2);
}
__device__ __forceinline__ double approximate_log1p_of_unit(double e) { return log1p_of_unit(e); }

template <typename T, int n>
__device__ __forceinline__ Vec<T, n> divide_by_unit(Vec<T, n> a, Vec<T, n> b) {
  for (int k = 0; k < n; ++k) a.at[k] = approximate_quotient(a.at[k], b.at[k]);
  return a;
}

template <typename T, int n>
__device__ __forceinline__ Vec<T, n> log1p_of_unit(Vec<T, n> v) {
  for (int k = 0; k < n; ++k) v.at[k] = approximate_log1p_of_unit(v.at[k]);
  return v;
}

#include "../update.h"

template <typename T, int n>
S6LA_INLINE T sum(Vec<T, n> v) {
  T total = v.at[0];
  for (int k = 1; k < n; ++k) total += v.at[k];
  return total;
}

// What one instruction reads or writes of n numbers.
template <typename Storage, int n>
using Word = std::conditional_t<sizeof(Storage) * n == 16, uint4, uint2>;

// The numbers in the compute type. Of bfloat16, two neighbours from their common word: the compiler would take it apart
// first and shift each of them then.
template <typename Compute, int n, typename Storage>
__device__ __forceinline__ Vec<Compute, n> widen(const Storage (&numbers)[n]) {
  Vec<Compute, n> v;
  if constexpr (std::is_same<Storage, c10::BFloat16>::value) {
    uint32_t pairs[n / 2];
    static_assert(sizeof(pairs) == sizeof(numbers), "two numbers in each word");
    memcpy(pairs, numbers, sizeof(pairs));
#pragma unroll
    for (int k = 0; k < n; ++k) v.at[k] = __uint_as_float(k % 2 ? pairs[k / 2] & 0xffff0000u : pairs[k / 2] << 16);
  } else {
#pragma unroll
    for (int k = 0; k < n; ++k) v.at[k] = static_cast<Compute>(numbers[k]);
  }
  return v;
}

// The numbers at p, of which `left` are there; the others are 0. `wide`: p is aligned for all of them at once.
template <typename Compute, int n, typename Storage>
__device__ __forceinline__ Vec<Compute, n> load(const Storage* p, bool wide, int left) {
  Storage numbers[n];
  if (wide && left == n) {
    const auto word = __ldg(reinterpret_cast<const Word<Storage, n>*>(p));
    static_assert(sizeof(word) == sizeof(numbers), "one instruction for all of them");
    memcpy(numbers, &word, sizeof(word));
  } else {
#pragma unroll
    for (int k = 0; k < n; ++k) numbers[k] = k < left ? p[k] : Storage(0);
  }
  return widen<Compute>(numbers);
}

template <typename Compute, int n, typename Storage>
__device__ __forceinline__ void store(Storage* p, bool wide, int left, Vec<Compute, n> v) {
  Storage numbers[n];
#pragma unroll
  for (int k = 0; k < n; ++k) numbers[k] = static_cast<Storage>(v.at[k]);
  if (wide && left == n) {
    // By way of one word: a struct of the numbers is stored one by one by nvcc.
    Word<Storage, n> word;
    static_assert(sizeof(word) == sizeof(numbers), "one instruction for all of them");
    memcpy(&word, numbers, sizeof(word));
    *reinterpret_cast<Word<Storage, n>*>(p) = word;
  } else {
#pragma unroll
    for (int k = 0; k < n; ++k) {
      if (k < left) p[k] = numbers[k];
    }
  }
}

}  // namespace cuda
}  // namespace s6la
