// Kernels for processors with AVX2, which has no 4-way dot product.
#include "kernels.h"

// GCC for Windows does not align vectors on the stack, as their loads and stores demand.
#if defined(__x86_64__) && defined(__GNUC__) && (!defined(_WIN32) || defined(__clang__))

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
constexpr size_t kHalfColumns = kPanelColumns / 2;
constexpr size_t kVectorBytes = 32;
constexpr size_t kStepBytes = kPanelColumns * kQuad;

inline __m256i load(const void* address) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(address));
}

struct Avx2Micro {
  static constexpr size_t kRows = 4;

  template <size_t Rows>
  static void int8(const TileRows& rows, Panel panel, size_t quads, float* totals) {
    int8_half<Rows>(rows.quads, panel.values, quads, totals);
    int8_half<Rows>(rows.quads, panel.values + kStepBytes / 2, quads, totals + kHalfColumns);
  }

  template <drl_format Format, size_t Rows>
  static void blocks(const TileRows& rows, Panel panel, size_t blocks, float* totals) {
    blocks_half<Format, Rows>(rows, panel, blocks, totals);
    const Panel right{panel.values + kStepBytes / 2, panel.multipliers + kHalfColumns};
    blocks_half<Format, Rows>(rows, right, blocks, totals + kHalfColumns);
  }

 private:
  template <size_t Rows>
  static void int8_half(const int32_t* activations, const uint8_t* values, size_t quads,
                        float* totals) {
    __m256i sums[Rows][kVectors];
    sum_bytes<Rows>(activations, values, quads, sums);
    for (size_t row = 0; row < Rows; ++row) {
      for (size_t i = 0; i < kVectors; ++i) {
        _mm256_storeu_ps(totals + row * kPanelColumns + i * 8, _mm256_cvtepi32_ps(sums[row][i]));
      }
    }
  }

  template <drl_format Format, size_t Rows>
  static void blocks_half(const TileRows& rows, Panel panel, size_t blocks, float* out) {
    constexpr size_t kBytes =
        Format == DRL_FORMAT_INT4 ? kStepBytes * kBlockQuads / 2 : kStepBytes * kBlockQuads;
    __m256 totals[Rows][kVectors];
    for (auto& row : totals) {
      for (auto& vector : row) vector = _mm256_setzero_ps();
    }
    for (size_t block = 0; block < blocks; ++block) {
      __m256i sums[Rows][kVectors];
      const int32_t* activations = rows.quads + block * kBlockQuads * Rows;
      if constexpr (Format == DRL_FORMAT_INT4) {
        sum_halves<Rows>(activations, rows.corrections + block * Rows,
                         panel.values + block * kBytes, sums);
      } else {
        sum_bytes<Rows>(activations, panel.values + block * kBytes, kBlockQuads, sums);
      }
      for (size_t i = 0; i < kVectors; ++i) {
        const uint8_t* stored = panel.multipliers + block * kPanelColumns + i * 8;
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(stored));
        const __m256 multipliers = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
        for (size_t row = 0; row < Rows; ++row) {
          const __m256 sum = _mm256_cvtepi32_ps(sums[row][i]);
          totals[row][i] = _mm256_add_ps(totals[row][i], _mm256_mul_ps(sum, multipliers));
        }
      }
    }
    for (size_t row = 0; row < Rows; ++row) {
      for (size_t i = 0; i < kVectors; ++i) {
        _mm256_storeu_ps(out + row * kPanelColumns + i * 8, totals[row][i]);
      }
    }
  }

  // The sums of so many quads of int8.
  template <size_t Rows>
  static void sum_bytes(const int32_t* activations, const uint8_t* values, size_t quads,
                        __m256i (&sums)[Rows][kVectors]) {
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i bias = _mm256_set1_epi8(static_cast<char>(kInt8Bias));
    for (auto& row : sums) {
      for (auto& vector : row) vector = _mm256_setzero_si256();
    }
    for (size_t quad = 0; quad < quads; ++quad, values += kStepBytes) {
      __m256i weights[kVectors];
      for (size_t i = 0; i < kVectors; ++i) {
        weights[i] = _mm256_xor_si256(load(values + i * kVectorBytes), bias);
      }
      for (size_t row = 0; row < Rows; ++row) {
        const __m256i a = _mm256_set1_epi32(activations[quad * Rows + row]);
        const __m256i magnitude = _mm256_abs_epi8(a);
        for (size_t i = 0; i < kVectors; ++i) {
          // The multiplication wants one unsigned operand, so the sign of a goes to the weight.
          // Two products of at most 127² fit in 16 bits: nothing saturates.
          const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(weights[i], a));
          sums[row][i] = _mm256_add_epi32(sums[row][i], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
  }

  // The sums of one block of int4, in 16 bits: 16 products of at most 15·127 fit.
  template <size_t Rows>
  static void sum_halves(const int32_t* activations, const int32_t* corrections,
                         const uint8_t* values, __m256i (&sums)[Rows][kVectors]) {
    const __m256i nibble = _mm256_set1_epi8(15);
    for (auto& row : sums) {
      for (auto& vector : row) vector = _mm256_setzero_si256();
    }
    for (size_t j = 0; j < kBlockQuads / 2; ++j, values += kStepBytes, activations += Rows) {
      for (size_t i = 0; i < kVectors; ++i) {
        const __m256i pair = load(values + i * kVectorBytes);
        const __m256i low = _mm256_and_si256(pair, nibble);
        const __m256i high = _mm256_and_si256(_mm256_srli_epi16(pair, 4), nibble);
        for (size_t row = 0; row < Rows; ++row) {
          const __m256i a = _mm256_set1_epi32(activations[row]);
          const __m256i b = _mm256_set1_epi32(activations[kBlockQuads / 2 * Rows + row]);
          sums[row][i] = _mm256_add_epi16(sums[row][i], _mm256_maddubs_epi16(low, a));
          sums[row][i] = _mm256_add_epi16(sums[row][i], _mm256_maddubs_epi16(high, b));
        }
      }
    }
    for (size_t row = 0; row < Rows; ++row) {
      // Σ a·(q + 8) - 8·Σ a = Σ a·q
      const __m256i start = _mm256_set1_epi32(corrections[row]);
      for (size_t i = 0; i < kVectors; ++i) {
        const __m256i wide = _mm256_madd_epi16(sums[row][i], _mm256_set1_epi16(1));
        sums[row][i] = _mm256_add_epi32(wide, start);
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
