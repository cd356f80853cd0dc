// Keys and values as rows of int8, compiled for every instruction set that includes it (see
// exponential.h).
//
// A row has the values of a head at one position and two bytes with their scale: a float32 of 16
// bits without a sign. The first of them holds the upper 8 bits of its mantissa, the second its
// exponent.
#pragma once

#include <cstring>

#include "attention_kernels.h"
#include "magnitude.h"

namespace drl {
namespace {

constexpr uint32_t kScaleShift = 15;  // bits of a float32 that a scale leaves out
constexpr uint32_t kNanScale = 0xFF80;

inline float scale_of(const int8_t* row, size_t width) {
  const uint32_t low = static_cast<uint8_t>(row[width]), high = static_cast<uint8_t>(row[width + 1]);
  return from_bits(static_cast<int32_t>((high << 8 | low) << kScaleShift));
}

// scale = max|x| / 127, rounded up, and q = round(x * (1 / scale)). A row with NaN or infinity gets
// scale NaN and q = 0; one whose largest magnitude is below kSmallestMagnitude gets 0.
void quantize_state(const float* x, size_t width, int8_t* row) {
  const int32_t bits = largest_magnitude(x, width, Unchanged{});
  uint32_t code = 0;
  if (bits < kInfinityBits && from_bits(bits) >= kSmallestMagnitude) {
    constexpr uint32_t kMost = (1u << kScaleShift) - 1;
    code = (static_cast<uint32_t>(to_bits(from_bits(bits) / 127.0f)) + kMost) >> kScaleShift;
    const float inverse = 1.0f / from_bits(static_cast<int32_t>(code << kScaleShift));
    for (size_t i = 0; i < width; ++i) row[i] = static_cast<int8_t>(rounded(x[i] * inverse));
  } else {
    if (bits >= kInfinityBits) code = kNanScale;
    std::memset(row, 0, width);
  }
  row[width] = static_cast<int8_t>(code & 0xFF);
  row[width + 1] = static_cast<int8_t>(code >> 8);
}

}  // namespace
}  // namespace drl
