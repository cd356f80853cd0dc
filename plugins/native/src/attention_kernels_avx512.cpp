// Attention's loops for processors with AVX-512.
#include "attention_kernels.h"

// GCC for Windows does not align vectors on the stack, as their loads and stores demand.
#if defined(__x86_64__) && defined(__GNUC__) && (!defined(_WIN32) || defined(__clang__))

#if !defined(__clang__)
// GCC 12 takes its own "undefined" registers in <immintrin.h> for mistakes. The other instruction
// sets compile the same loops with these warnings on.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <cmath>
#include <cstring>

// For this file only: the rest of the library must run on any processor.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512")
#endif

#include "float_loops.h"

namespace drl {
namespace {

struct Avx512Vector {
  static constexpr size_t kRows = 4;  // with four slots or columns: 16 sums of 32 registers
  static constexpr size_t kHeadRows = 4;
  static constexpr size_t kHeadColumns = 4;
  static constexpr size_t kMatrixRows = 6;  // with four vectors of columns: 24 sums
  static constexpr size_t kMatrixVectors = 4;
  static constexpr size_t kWideVectors = 8;

  __m512 all;

  static Avx512Vector broadcast(float value) { return {_mm512_set1_ps(value)}; }
  static Avx512Vector load(const float* x) { return {_mm512_loadu_ps(x)}; }
  static Avx512Vector load(const float* x, size_t count) {
    return {_mm512_maskz_loadu_ps(first(count), x)};
  }
  static Avx512Vector load(const int8_t* x) {
    return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
  }
  static Avx512Vector load(const int8_t* x, size_t count) {
    return widened(_mm_maskz_loadu_epi8(first(count), x));
  }
  void store(float* y) const { _mm512_storeu_ps(y, all); }
  void store(float* y, size_t count) const { _mm512_mask_storeu_ps(y, first(count), all); }

  [[gnu::always_inline]] static void prefetch(uintptr_t address) {
    _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0);
  }

  Avx512Vector in_register() const {
    __m512 value = all;
    __asm__("" : "+v"(value));
    return {value};
  }

  float total() const {
    const __m256 eight =
        _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  float highest() const { return _mm512_reduce_max_ps(all); }

  static void totals(const Avx512Vector (&vectors)[kTileSlots], float* y) {
    const __m512 first = eights(vectors[0].all, vectors[1].all);
    const __m512 second = eights(vectors[2].all, vectors[3].all);
    // A quarter of the register for each of the four vectors.
    const __m512 fours = _mm512_add_ps(_mm512_shuffle_f32x4(first, second, 0x88),
                                       _mm512_shuffle_f32x4(first, second, 0xDD));
    const __m512 twos = _mm512_add_ps(fours, _mm512_permute_ps(fours, 0x4E));
    const __m512 sums = _mm512_add_ps(twos, _mm512_permute_ps(twos, 0xB1));
    _mm_storeu_ps(y, _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, sums)));
  }

 private:
  static Avx512Vector widened(__m128i bytes) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
  }

  static __mmask16 first(size_t count) { return static_cast<__mmask16>((1u << count) - 1u); }

  // The sums of lanes 8 apart: of a in the low half, of b in the high one.
  static __m512 eights(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  }
};

inline Avx512Vector operator+(const Avx512Vector& a, const Avx512Vector& b) {
  return {_mm512_add_ps(a.all, b.all)};
}

inline Avx512Vector operator*(const Avx512Vector& a, const Avx512Vector& b) {
  return {_mm512_mul_ps(a.all, b.all)};
}

inline Avx512Vector multiply_add(const Avx512Vector& a, const Avx512Vector& b,
                                 const Avx512Vector& c) {
  return {_mm512_fmadd_ps(a.all, b.all, c.all)};
}

inline Avx512Vector maximum(const Avx512Vector& a, const Avx512Vector& b) {
  return {_mm512_max_ps(a.all, b.all)};
}

constexpr AttentionKernels kKernels = make_attention_kernels<Avx512Vector>();

}  // namespace
}  // namespace drl

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const drl::AttentionKernels* drl::avx512_attention_kernels() { return &kKernels; }

#else

const drl::AttentionKernels* drl::avx512_attention_kernels() { return nullptr; }

#endif
