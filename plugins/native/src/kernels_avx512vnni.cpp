// Kernels for processors with AVX-512 and its int8 dot product (VNNI).
#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#include <cstring>

// For this file only: the rest of the library must run on any processor.
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512")
#endif

#include "row_kernels.h"

namespace drl {
namespace {

constexpr size_t kVectors = 2;  // of 16 columns each; they make a panel
constexpr size_t kVectorBytes = 64;
constexpr size_t kStepBytes = kVectors * kVectorBytes;
constexpr size_t kPrefetchBytes = 2048;

// total += four products per column. In assembly: GCC 12 moves the totals of the intrinsic through
// memory, at half the speed.
inline __m512i dot(__m512i total, __m512i weights, __m512i activations) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(total) : "v"(weights), "v"(activations));
  return total;
}

struct Avx512VnniMicro {
  static constexpr size_t kRows = 12;  // 24 totals, 2 weights, 1 activation of 32 registers

  template <size_t Rows>
  static void tile(const int32_t* activations, const int32_t* row_sums, const uint8_t* panel,
                   size_t quads, int32_t* sums) {
    __m512i totals[Rows][kVectors];
    for (size_t row = 0; row < Rows; ++row) {
      // Σ a·(q + 128) - 128·Σ a = Σ a·q
      const __m512i start = _mm512_set1_epi32(-kWeightBias * row_sums[row]);
      for (size_t i = 0; i < kVectors; ++i) totals[row][i] = start;
    }
    for (size_t quad = 0; quad < quads; ++quad, panel += kStepBytes) {
      __m512i weights[kVectors];
      for (size_t i = 0; i < kVectors; ++i) {
        const uint8_t* address = panel + i * kVectorBytes;
        weights[i] = _mm512_loadu_si512(address);
        // With few rows a tile waits for memory, and this is a third faster than leaving it to the
        // processor to guess. Beyond the end it does nothing.
        _mm_prefetch(reinterpret_cast<const char*>(address) + kPrefetchBytes, _MM_HINT_T0);
      }
      for (size_t row = 0; row < Rows; ++row) {
        const __m512i a = _mm512_set1_epi32(activations[quad * Rows + row]);
        for (size_t i = 0; i < kVectors; ++i) totals[row][i] = dot(totals[row][i], weights[i], a);
      }
    }
    for (size_t row = 0; row < Rows; ++row) {
      for (size_t i = 0; i < kVectors; ++i) {
        _mm512_storeu_si512(sums + row * kPanelColumns + i * 16, totals[row][i]);
      }
    }
  }
};

constexpr Kernels kKernels = make_kernels<Avx512VnniMicro>();

}  // namespace
}  // namespace drl

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

const drl::Kernels* drl::avx512vnni_kernels() { return &kKernels; }

#else

const drl::Kernels* drl::avx512vnni_kernels() { return nullptr; }

#endif
