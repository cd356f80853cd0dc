// Kernels for processors with AVX-512 and its int8 dot product (VNNI).
#include "kernels.h"

// GCC for Windows does not align vectors on the stack, as their loads and stores demand.
#if defined(__x86_64__) && defined(__GNUC__) && (!defined(_WIN32) || defined(__clang__))

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

constexpr size_t kVectorColumns = 16;
constexpr size_t kVectors = 2;  // they make a panel
constexpr size_t kVectorBytes = 64;
constexpr size_t kStepBytes = kVectors * kVectorBytes;
constexpr size_t kPrefetchBytes = 2048;

// total += four products per column. In assembly: GCC 12 moves the totals of the intrinsic through
// memory, at half the speed.
inline __m512i dot(__m512i total, __m512i weights, __m512i activations) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(total) : "v"(weights), "v"(activations));
  return total;
}

// Masks of ones, since GCC 12 warns of the unmasked intrinsics' own undefined operands.
inline __m512 to_float(__m512i sums) { return _mm512_maskz_cvtepi32_ps(0xFFFF, sums); }

inline __m512 load_bytes(const uint8_t* address) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(address));
  return to_float(_mm512_maskz_cvtepu8_epi32(0xFFFF, bytes));
}

// With few rows a tile waits for memory, and this is a third faster than leaving it to the
// processor to guess. Beyond the end it does nothing.
inline void prefetch(const uint8_t* now) {
  // As a number, since it may be beyond the weights, where pointers must not point.
  const uintptr_t address = reinterpret_cast<uintptr_t>(now) + kPrefetchBytes;
  _mm_prefetch(reinterpret_cast<const char*>(address), _MM_HINT_T0);
}

// The totals of a tile over its blocks. Of many rows they stay in memory: the sums of a block take
// the registers, and one addition per block and vector can wait.
template <size_t Rows>
class Totals {
 public:
  explicit Totals(float* out) : out_(out) {
    for (size_t row = 0; row < Rows; ++row) {
      for (size_t i = 0; i < kVectors; ++i) set(row, i, _mm512_setzero_ps());
    }
  }

  // Before the totals of a block are read. It keeps GCC from holding copies on the stack beside.
  void read() const {
    if constexpr (!kHeld) __asm__ volatile("" : : "r"(out_) : "memory");
  }

  __m512 get(size_t row, size_t i) const {
    if constexpr (kHeld) return held_[row][i];
    return _mm512_loadu_ps(place(row, i));
  }

  void set(size_t row, size_t i, __m512 total) {
    if constexpr (kHeld) {
      held_[row][i] = total;
    } else {
      _mm512_storeu_ps(place(row, i), total);
    }
  }

  void finish() const {
    if constexpr (kHeld) {
      for (size_t row = 0; row < Rows; ++row) {
        for (size_t i = 0; i < kVectors; ++i) _mm512_storeu_ps(place(row, i), held_[row][i]);
      }
    }
  }

 private:
  static constexpr bool kHeld = Rows <= 6;  // 12 totals beside 12 sums

  float* place(size_t row, size_t i) const {
    return out_ + row * kPanelColumns + i * kVectorColumns;
  }

  float* out_;
  __m512 held_[kHeld ? Rows : 1][kVectors];
};

struct Avx512VnniMicro {
  static constexpr size_t kRows = 12;  // int8: 24 sums, 2 weights, 1 activation of 32 registers

  template <size_t Rows>
  static void int8(const TileRows& rows, Panel panel, size_t quads, float* totals) {
    __m512i sums[Rows][kVectors];
    for (size_t row = 0; row < Rows; ++row) {
      // Σ a·(q + 128) - 128·Σ a = Σ a·q
      const __m512i start = _mm512_set1_epi32(rows.corrections[row]);
      for (size_t i = 0; i < kVectors; ++i) sums[row][i] = start;
    }
    const uint8_t* values = panel.values;
    for (size_t quad = 0; quad < quads; ++quad, values += kStepBytes) {
      add_bytes<Rows>(rows.quads + quad * Rows, values, sums);
    }
    for (size_t row = 0; row < Rows; ++row) {
      for (size_t i = 0; i < kVectors; ++i) {
        _mm512_storeu_ps(totals + row * kPanelColumns + i * kVectorColumns, to_float(sums[row][i]));
      }
    }
  }

  template <drl_format Format, size_t Rows>
  static void blocks(const TileRows& rows, Panel panel, size_t blocks, float* out) {
    constexpr bool kHalves = Format == DRL_FORMAT_INT4;
    Totals<Rows> totals(out);
    const int32_t* activations = rows.quads;
    const uint8_t* values = panel.values;
    for (size_t block = 0; block < blocks; ++block, activations += kBlockQuads * Rows) {
      __m512i sums[Rows][kVectors];
      for (size_t row = 0; row < Rows; ++row) {
        // Σ a·(q + bias) - bias·Σ a = Σ a·q
        const __m512i start = _mm512_set1_epi32(rows.corrections[block * Rows + row]);
        for (size_t i = 0; i < kVectors; ++i) sums[row][i] = start;
      }
      for (size_t j = 0; j < kBlockQuads / (kHalves ? 2 : 1); ++j, values += kStepBytes) {
        if constexpr (kHalves) {
          add_halves<Rows>(activations + j * Rows, values, sums);
        } else {
          add_bytes<Rows>(activations + j * Rows, values, sums);
        }
      }
      totals.read();
      for (size_t i = 0; i < kVectors; ++i) {
        const __m512 multipliers =
            load_bytes(panel.multipliers + block * kPanelColumns + i * kVectorColumns);
        for (size_t row = 0; row < Rows; ++row) {
          const __m512 before = totals.get(row, i), sum = to_float(sums[row][i]);
          // In int4 the product has at most 23 bits and is exact: fusing it changes nothing.
          totals.set(row, i,
                     kHalves ? _mm512_fmadd_ps(sum, multipliers, before)
                             : _mm512_add_ps(before, _mm512_mul_ps(sum, multipliers)));
        }
      }
    }
    totals.finish();
  }

 private:
  // Adds a quad.
  template <size_t Rows>
  static void add_bytes(const int32_t* activations, const uint8_t* values,
                        __m512i (&sums)[Rows][kVectors]) {
    __m512i weights[kVectors];
    for (size_t i = 0; i < kVectors; ++i) {
      weights[i] = _mm512_loadu_si512(values + i * kVectorBytes);
      prefetch(values + i * kVectorBytes);
    }
    for (size_t row = 0; row < Rows; ++row) {
      const __m512i a = _mm512_set1_epi32(activations[row]);
      for (size_t i = 0; i < kVectors; ++i) sums[row][i] = dot(sums[row][i], weights[i], a);
    }
  }

  // Adds the quads j and j + 4 of a block.
  template <size_t Rows>
  static void add_halves(const int32_t* activations, const uint8_t* values,
                         __m512i (&sums)[Rows][kVectors]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512i low[kVectors], high[kVectors];
    for (size_t i = 0; i < kVectors; ++i) {
      const __m512i pair = _mm512_loadu_si512(values + i * kVectorBytes);
      prefetch(values + i * kVectorBytes);
      low[i] = _mm512_and_si512(pair, nibble);
      high[i] = _mm512_and_si512(_mm512_srli_epi16(pair, 4), nibble);
    }
    for (size_t row = 0; row < Rows; ++row) {
      const __m512i a = _mm512_set1_epi32(activations[row]);
      const __m512i b = _mm512_set1_epi32(activations[kBlockQuads / 2 * Rows + row]);
      for (size_t i = 0; i < kVectors; ++i) sums[row][i] = dot(sums[row][i], low[i], a);
      for (size_t i = 0; i < kVectors; ++i) sums[row][i] = dot(sums[row][i], high[i], b);
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
