// Attention's loops for processors with AVX2.
#include "attention_kernels.h"

// GCC for Windows does not align vectors on the stack, as their loads and stores demand.
#if defined(__x86_64__) && defined(__GNUC__) && (!defined(_WIN32) || defined(__clang__))

#include <immintrin.h>

#include <cmath>
#include <cstring>

// For this file only: the rest of the library must run on any processor.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#include "float_loops.h"

namespace drl {
namespace {

struct Avx2Vector {
  static constexpr size_t kRows = 1;  // four slots of two registers each, of 16
  static constexpr size_t kHeadRows = 2;
  static constexpr size_t kHeadColumns = 2;
  static constexpr size_t kMatrixRows = 6;  // of one vector: 12 sums
  static constexpr size_t kMatrixVectors = 1;
  static constexpr size_t kWideVectors = 4;

  __m256 low;
  __m256 high;

  static Avx2Vector broadcast(float value) {
    const __m256 all = _mm256_set1_ps(value);
    return {all, all};
  }

  static Avx2Vector load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }

  static Avx2Vector load(const float* x, size_t count) {
    return {_mm256_maskload_ps(x, first(count)),
            count > 8 ? _mm256_maskload_ps(x + 8, first(count - 8)) : _mm256_setzero_ps()};
  }

  static Avx2Vector load(const int8_t* x) { return {eight(x), eight(x + 8)}; }

  static Avx2Vector load(const int8_t* x, size_t count) {
    int8_t whole[kFloatLanes] = {};
    std::memcpy(whole, x, count);
    return load(whole);
  }

  void store(float* y) const {
    _mm256_storeu_ps(y, low);
    _mm256_storeu_ps(y + 8, high);
  }

  void store(float* y, size_t count) const {
    _mm256_maskstore_ps(y, first(count), low);
    if (count > 8) _mm256_maskstore_ps(y + 8, first(count - 8), high);
  }

  [[gnu::always_inline]] static void prefetch(uintptr_t address) {
    _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0);
  }

  Avx2Vector in_register() const {
    __m256 first = low, second = high;
    __asm__("" : "+x"(first), "+x"(second));
    return {first, second};
  }

  float total() const {
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  float highest() const {
    const __m256 eight = _mm256_max_ps(low, high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

  static void totals(const Avx2Vector (&vectors)[kTileSlots], float* y) {
    const __m256 first = fours(vectors[0], vectors[1]);
    const __m256 second = fours(vectors[2], vectors[3]);
    // Lanes 0 and 1 of each half: what is left of vectors 0 and 1; lanes 2 and 3: of 2 and 3.
    const __m256 twos = _mm256_add_ps(_mm256_shuffle_ps(first, second, 0x44),
                                      _mm256_shuffle_ps(first, second, 0xEE));
    const __m256 sums = _mm256_add_ps(twos, _mm256_permute_ps(twos, 0xB1));
    const __m256i places = _mm256_setr_epi32(0, 4, 2, 6, 0, 4, 2, 6);
    _mm_storeu_ps(y, _mm256_castps256_ps128(_mm256_permutevar8x32_ps(sums, places)));
  }

 private:
  static __m256 eight(const int8_t* x) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }

  static __m256i first(size_t count) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lanes);
  }

  // The sums of lanes 8 and then 4 apart: of a in the low half, of b in the high one.
  static __m256 fours(const Avx2Vector& a, const Avx2Vector& b) {
    const __m256 eight_a = _mm256_add_ps(a.low, a.high);
    const __m256 eight_b = _mm256_add_ps(b.low, b.high);
    return _mm256_add_ps(_mm256_permute2f128_ps(eight_a, eight_b, 0x20),
                         _mm256_permute2f128_ps(eight_a, eight_b, 0x31));
  }
};

inline Avx2Vector operator+(const Avx2Vector& a, const Avx2Vector& b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}

inline Avx2Vector operator*(const Avx2Vector& a, const Avx2Vector& b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}

inline Avx2Vector multiply_add(const Avx2Vector& a, const Avx2Vector& b, const Avx2Vector& c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}

inline Avx2Vector maximum(const Avx2Vector& a, const Avx2Vector& b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

constexpr AttentionKernels kKernels = make_attention_kernels<Avx2Vector>();

}  // namespace
}  // namespace drl

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const drl::AttentionKernels* drl::avx2_attention_kernels() { return &kKernels; }

#else

const drl::AttentionKernels* drl::avx2_attention_kernels() { return nullptr; }

#endif
