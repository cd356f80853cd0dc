// Kernels for processors with AVX2, which has no 4-way dot product.
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <cstring>

// For this file only: the rest of the library must run on any processor.
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

#include "row_kernels.h"

namespace drl {
namespace {

constexpr size_t kVectors = 2;  // of 8 columns each; two rounds make a panel
constexpr size_t kVectorBytes = 32;

inline __m256i load(const void* address) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(address));
}

struct Avx2Micro {
  static constexpr size_t kRows = 4;

  template <size_t Rows>
  static void tile(const int32_t* activations, const int32_t*, const uint8_t* panel, size_t quads,
                   int32_t* sums) {
    half<Rows>(activations, panel, quads, sums);
    half<Rows>(activations, panel + kVectors * kVectorBytes, quads, sums + kPanelColumns / 2);
  }

 private:
  template <size_t Rows>
  static void half(const int32_t* activations, const uint8_t* panel, size_t quads, int32_t* sums) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i bias = _mm256_set1_epi8(static_cast<char>(kWeightBias));
    __m256i totals[Rows][kVectors];
    for (auto& row : totals) {
      for (auto& vector : row) vector = _mm256_setzero_si256();
    }
    for (size_t quad = 0; quad < quads; ++quad, panel += kPanelColumns * kQuad) {
      __m256i weights[kVectors];
      for (size_t i = 0; i < kVectors; ++i) {
        weights[i] = _mm256_xor_si256(load(panel + i * kVectorBytes), bias);
      }
      for (size_t row = 0; row < Rows; ++row) {
        const __m256i a = _mm256_set1_epi32(activations[quad * Rows + row]);
        const __m256i magnitude = _mm256_abs_epi8(a);
        for (size_t i = 0; i < kVectors; ++i) {
          // The multiplication wants one unsigned operand, so the sign of a goes to the weight.
          // Two products of at most 127² fit in 16 bits: nothing saturates.
          const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(weights[i], a));
          totals[row][i] = _mm256_add_epi32(totals[row][i], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
    for (size_t row = 0; row < Rows; ++row) {
      for (size_t i = 0; i < kVectors; ++i) {
        int32_t* out = sums + row * kPanelColumns + i * 8;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), totals[row][i]);
      }
    }
  }
};

constexpr Kernels kKernels = make_kernels<Avx2Micro>();

}  // namespace
}  // namespace drl

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const drl::Kernels* drl::avx2_kernels() { return &kKernels; }

#else

const drl::Kernels* drl::avx2_kernels() { return nullptr; }

#endif
