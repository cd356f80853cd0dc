// The kernels' machine on a host, in the place of device.cuh: a block's threads are fibres that
// meet at barriers and in the instructions of a warp.
#pragma once

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "machine.h"

#define __device__
#define __global__
#define __restrict__
#define __launch_bounds__(...)
// In a section of its own, which is filled with rubbish before each block.
#define __shared__ static __attribute__((section("drl_shared")))

#define threadIdx (drl::emulation::current_thread())
#define blockIdx (drl::emulation::current_block())

inline int min(int a, int b) { return a < b ? a : b; }

inline void __syncthreads() { drl::emulation::meet_block(); }

inline int atomicAdd(int* address, int value) {
  const int before = *address;  // fibres switch at barriers only
  *address = before + value;
  return before;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// Byte i of the result is the byte that digit i of `choice` names: 0 … 3 of low, 4 … 7 of high.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned choice) {
  const std::uint64_t all = static_cast<std::uint64_t>(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned digit = choice >> (4 * i) & 0xf;
    if (digit > 7) drl::emulation::fail("__byte_perm with a sign");
    result |= static_cast<unsigned>(all >> (8 * digit) & 0xff) << (8 * i);
  }
  return result;
}

template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes) {
  return drl::emulation::shuffle(mask, value, drl::emulation::lane() ^ lanes);
}

template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, int distance) {
  const int source = drl::emulation::lane() - distance;
  return drl::emulation::shuffle(mask, value, source < 0 ? drl::emulation::lane() : source);
}

namespace drl {

constexpr unsigned kFullWarp = 0xffffffffu;

inline float half_to_float(unsigned short bits) {
  const unsigned sign = static_cast<unsigned>(bits & 0x8000) << 16;
  const unsigned exponent = bits >> 10 & 31;
  const unsigned fraction = bits & 0x3ff;
  if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {
    const float small = std::ldexp(static_cast<float>(fraction), -24);
    return sign ? -small : small;
  }
  return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

inline unsigned short float_to_half(float value) {
  const unsigned short sign = static_cast<unsigned short>(__float_as_uint(value) >> 16 & 0x8000);
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7fff;
  if (size >= 65520.0f) return sign | 0x7c00;
  if (size < 6.103515625e-05f) {  // below the least normal number: multiples of 2^-24
    return sign | static_cast<unsigned short>(std::nearbyint(std::ldexp(size, 24)));
  }
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // in [0.5, 1)
  const int rounded = static_cast<int>(std::nearbyint(std::ldexp(fraction, 11)));  // 1024 … 2048
  return sign | static_cast<unsigned short>(((exponent + 13) << 10) + rounded);
}

inline unsigned short float_to_bfloat(float value) {
  unsigned bits = __float_as_uint(value);
  if (std::isnan(value)) return 0x7fff;
  bits += 0x7fff + (bits >> 16 & 1);
  return static_cast<unsigned short>(bits >> 16);
}

inline unsigned multiply_add_bfloats(unsigned a, unsigned b, unsigned c) {
  unsigned result = 0;
  for (int half = 0; half < 2; ++half) {
    const auto value = [half](unsigned word) {
      return __uint_as_float(word >> (16 * half) << 16);
    };
    const float sum = value(a) * value(b) + value(c);
    result |= static_cast<unsigned>(float_to_bfloat(sum)) << (16 * half);
  }
  return result;
}

inline unsigned subtract_halves(unsigned a, unsigned b) {
  unsigned result = 0;
  for (int shift = 0; shift < 32; shift += 16) {
    const float x = half_to_float(static_cast<unsigned short>(a >> shift));
    const float y = half_to_float(static_cast<unsigned short>(b >> shift));
    result |= static_cast<unsigned>(float_to_half(x - y)) << shift;
  }
  return result;
}

template <int kWords>
inline void load_often(unsigned (&words)[kWords], const void* address) {
  if (reinterpret_cast<std::uintptr_t>(address) % (4 * kWords) != 0) {
    emulation::fail("an unaligned load");
  }
  std::memcpy(words, address, 4 * kWords);
}

template <int kWords>
inline void load_once(unsigned (&words)[kWords], const void* address) {
  load_often(words, address);
}

// What the instruction computes, from the operands of all lanes; sums in the host's fp64.
template <typename ToFloat>
inline void multiply_tile(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                          ToFloat to_float) {
  struct Operand {
    unsigned a[4], b[2];
  };
  const Operand own = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  Operand all[32];
  emulation::share(own, all);
  const int g = emulation::lane() / 4, q = emulation::lane() % 4;
  const auto element = [&](unsigned word, int odd) {
    return static_cast<double>(to_float(static_cast<unsigned short>(word >> (16 * odd))));
  };
  for (int i = 0; i < 4; ++i) {
    const int column = 2 * q + i % 2;
    double sum = c[i];
    for (int k = 0; k < 16; ++k) {
      const Operand& of_row = all[4 * g + k % 8 / 2];
      const Operand& of_column = all[4 * column + k % 8 / 2];
      sum += element(of_row.a[i / 2 + 2 * (k / 8)], k % 2) * element(of_column.b[k / 8], k % 2);
    }
    c[i] = static_cast<float>(sum);
  }
}

inline void multiply_halves(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  multiply_tile(c, a, b0, b1, half_to_float);
}

inline void multiply_bfloats(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  multiply_tile(c, a, b0, b1, [](unsigned short bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
  });
}

}  // namespace drl
