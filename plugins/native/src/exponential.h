// e^x in plain arithmetic, which every instruction set computes to the same bits.
//
// This header and the others for rows lie in an unnamed namespace and call nothing of the C++
// library: an inline function that two files compile for different processors is merged into one by
// the linker, and an old processor may then meet the new one's instructions. Everything is plain
// IEEE arithmetic in a fixed order, so compilers may vectorise but not change it; the build turns
// off contraction to fused multiply-adds (-ffp-contract=off).
#pragma once

#include <cstdint>
#include <cstring>

namespace drl {
namespace {

// Rounds to the nearest integer, ties to even, for |x| < 2^22: there the last bit of x + 1.5·2^23
// is worth 1.
constexpr float kRounder = 12582912.0f;
constexpr int32_t kRounderBits = 0x4B400000;
constexpr int32_t kInfinityBits = 0x7F800000;

inline int32_t to_bits(float value) {
  int32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float from_bits(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Exponentials of what lies between are normal floats.
constexpr float kLeastExponent = -87.0f;
constexpr float kMostExponent = 88.0f;

// e^x to about 2 units in the last place (Cephes' expf), for x within the exponents above or NaN.
inline float exponential_within(float x) {
  const float shifted = x * 1.44269504f + kRounder;
  const float n = shifted - kRounder;
  // ln 2 in two parts: the first has so few bits that n times it is exact.
  const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const uint32_t exponent = static_cast<uint32_t>(to_bits(shifted)) - kRounderBits + 127u;
  return p * from_bits(static_cast<int32_t>(exponent << 23));
}

// The same for any x, cut to the exponents above; NaN stays NaN.
inline float exponential(float x) {
  x = x < kLeastExponent ? kLeastExponent : x;
  return exponential_within(x > kMostExponent ? kMostExponent : x);
}

}  // namespace
}  // namespace drl
