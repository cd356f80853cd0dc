// The types of states and weights, and how they become fp32 or operands of the tensor cores.
#pragma once

#ifdef DRL_HOST
#include "host.h"
#else
#include "device.cuh"
#endif

namespace drl {

struct Half {
  unsigned short bits;
};

struct BFloat {
  unsigned short bits;
};

// A weight that its column's scale multiplies.
struct Int8 {
  signed char value;
};

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(Half value) { return half_to_float(value.bits); }
__device__ inline float to_float(BFloat value) {
  return __uint_as_float(static_cast<unsigned>(value.bits) << 16);
}

__device__ inline unsigned bits_of(Half value) { return value.bits; }
__device__ inline unsigned bits_of(BFloat value) { return value.bits; }
__device__ inline unsigned bits_of(Int8 value) { return static_cast<unsigned char>(value.value); }

template <typename T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) {
  return value;
}
template <>
__device__ inline Half from_float<Half>(float value) {
  return Half{float_to_half(value)};
}
template <>
__device__ inline BFloat from_float<BFloat>(float value) {
  return BFloat{float_to_bfloat(value)};
}

__device__ inline void multiply(Half, float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                unsigned b1) {
  multiply_halves(c, a, b0, b1);
}
__device__ inline void multiply(BFloat, float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                unsigned b1) {
  multiply_bfloats(c, a, b0, b1);
}

// Four int8 as two pairs of fp16. A byte b + 128 put behind 0x64 is the fp16 number 1152 + b.
__device__ inline void widen(Half, unsigned bytes, unsigned& first, unsigned& second) {
  const unsigned raised = bytes ^ 0x80808080u;
  first = subtract_halves(__byte_perm(raised, 0x64646464u, 0x4140), 0x64806480u);
  second = subtract_halves(__byte_perm(raised, 0x64646464u, 0x4342), 0x64806480u);
}

// The same for bfloat16, which has too few digits for that: the lower seven bits behind 0x43 are
// the number 128 + them, and from this go 128, or 256 where the sign is set.
__device__ inline void widen(BFloat, unsigned bytes, unsigned& first, unsigned& second) {
  const unsigned ones = 0x3f803f80u;
  const unsigned low = __byte_perm(bytes, 0, 0x4140);
  const unsigned high = __byte_perm(bytes, 0, 0x4342);
  first = multiply_add_bfloats((low & 0x007f007fu) | 0x43004300u, ones,
                               (low & 0x00800080u) | 0xc300c300u);
  second = multiply_add_bfloats((high & 0x007f007fu) | 0x43004300u, ones,
                                (high & 0x00800080u) | 0xc300c300u);
}

__device__ inline bool is_aligned(const void* address) {
  return (reinterpret_cast<unsigned long long>(address) & 15u) == 0;
}

}  // namespace drl
