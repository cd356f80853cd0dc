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

// total += four products per column. In assembly: GCC 12 moves the totals of the intrinsic through
// memory, at half the speed.
inline __m512i dot(__m512i total, __m512i weights, __m512i activations) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(total) : "v"(weights), "v"(activations));
  return total;
}

struct Avx512VnniMicro {
  static constexpr size_t kRows = 12;  // 24 totals, 2 weights, 1 activation of 32 registers
  // With few rows a tile waits for memory: several streams along the depth keep more of it in
  // flight than one does.
  static constexpr size_t kStreamedRows = 2;

  template <size_t Rows>
  static void tile(const int32_t* activations, const int32_t* row_sums, const uint8_t* panel,
                   size_t quads, int32_t* sums) {
    constexpr size_t streams = Rows <= kStreamedRows ? 4 : 1;
    __m512i totals[streams][Rows][kVectors];
    for (size_t row = 0; row < Rows; ++row) {
      // Σ a·(q + 128) - 128·Σ a = Σ a·q
      const __m512i start = _mm512_set1_epi32(-kWeightBias * row_sums[row]);
      for (size_t i = 0; i < kVectors; ++i) {
        for (size_t s = 0; s < streams; ++s) {
          totals[s][row][i] = s == 0 ? start : _mm512_setzero_si512();
        }
      }
    }
    const size_t length = quads / streams;
    for (size_t quad = 0; quad < length; ++quad) {
      for (size_t s = 0; s < streams; ++s) {
        step<Rows>(activations, panel, s * length + quad, totals[s]);
      }
    }
    for (size_t quad = streams * length; quad < quads; ++quad) {
      step<Rows>(activations, panel, quad, totals[0]);
    }
    for (size_t row = 0; row < Rows; ++row) {
      for (size_t i = 0; i < kVectors; ++i) {
        __m512i total = totals[0][row][i];
        for (size_t s = 1; s < streams; ++s) total = _mm512_add_epi32(total, totals[s][row][i]);
        _mm512_storeu_si512(sums + row * kPanelColumns + i * 16, total);
      }
    }
  }

 private:
  template <size_t Rows>
  static inline __attribute__((always_inline)) void step(const int32_t* activations,
                                                         const uint8_t* panel, size_t quad,
                                                         __m512i (&totals)[Rows][kVectors]) {
    const uint8_t* address = panel + quad * kStepBytes;
    const __m512i first = _mm512_loadu_si512(address);
    const __m512i second = _mm512_loadu_si512(address + kVectorBytes);
    for (size_t row = 0; row < Rows; ++row) {
      const __m512i a = _mm512_set1_epi32(activations[quad * Rows + row]);
      totals[row][0] = dot(totals[row][0], first, a);
      totals[row][1] = dot(totals[row][1], second, a);
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
