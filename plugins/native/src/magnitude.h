// The largest magnitude of a row, which its rounding is made from; compiled for every instruction
// set that includes it (see exponential.h).
#pragma once

#include <cstddef>

#include "exponential.h"

namespace drl {
namespace {

// Below it 127 / max|x| could be infinite.
constexpr float kSmallestMagnitude = 0x1p-119f;

struct Unchanged {
  float operator()(float x, size_t) const { return x; }
};

// The bits of the largest magnitude. As integers, magnitudes keep their order and NaN comes last.
template <class Prepare>
int32_t largest_magnitude(const float* x, size_t count, const Prepare& prepare) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    const int32_t magnitude = to_bits(prepare(x[i], i)) & 0x7FFFFFFF;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// To the nearest whole number, ties to even, for |x| < 2^22.
inline int32_t rounded(float x) { return to_bits(x + kRounder) - kRounderBits; }

}  // namespace
}  // namespace drl
