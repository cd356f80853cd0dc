// The loops over one row, written once and compiled for every instruction set that includes them.
//
// They lie in an unnamed namespace and call nothing of the C++ library: an inline function that
// two files compile for different processors is merged into one by the linker, and an old
// processor may then meet the new one's instructions.
//
// All of it is plain IEEE arithmetic in a fixed order, so compilers may vectorise but not change
// it. The build turns off contraction to fused multiply-adds (-ffp-contract=off).
#pragma once

#include <cstring>

#include "kernels.h"

namespace drl {
namespace {

// Rounds to the nearest integer, ties to even, for |x| < 2^22: there the last bit of x + 1.5·2^23
// is worth 1.
constexpr float kRounder = 12582912.0f;
constexpr int32_t kRounderBits = 0x4B400000;
constexpr int32_t kInfinityBits = 0x7F800000;
// Below it 127 / max|x| could be infinite.
constexpr float kSmallestMagnitude = 0x1p-119f;
constexpr size_t kChunk = 64;

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

// The bits of the largest magnitude. As integers, magnitudes keep their order and NaN comes last.
inline int32_t largest_magnitude(const float* x, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    const int32_t magnitude = to_bits(x[i]) & 0x7FFFFFFF;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

inline int32_t quantize_chunk(const float* x, float inverse, size_t stride, size_t quads,
                              int32_t* out) {
  int8_t values[kChunk];
  int32_t sum = 0;
  for (size_t i = 0; i < kChunk; ++i) {
    const int32_t rounded = to_bits(x[i] * inverse + kRounder) - kRounderBits;
    values[i] = static_cast<int8_t>(rounded);
    sum += rounded;
  }
  if (stride == 1) {
    std::memcpy(out, values, quads * kQuad);
  } else {
    for (size_t quad = 0; quad < quads; ++quad) {
      std::memcpy(out + quad * stride, values + quad * kQuad, kQuad);
    }
  }
  return sum;
}

void quantize_row(const float* x, size_t depth, size_t stride, int32_t* quads, float* scale,
                  int32_t* sum) {
  const int32_t bits = largest_magnitude(x, depth);
  const float largest = from_bits(bits);
  const bool finite = bits < kInfinityBits;
  if (!finite || largest < kSmallestMagnitude) {
    for (size_t quad = 0; quad < ceil_div(depth, kQuad); ++quad) quads[quad * stride] = 0;
    *scale = finite ? 0.0f : from_bits(kInfinityBits + 1);
    *sum = 0;
    return;
  }
  const float inverse = 127.0f / largest;
  int32_t total = 0;
  size_t done = 0;
  for (; done + kChunk <= depth; done += kChunk) {
    total += quantize_chunk(x + done, inverse, stride, kChunk / kQuad,
                            quads + done / kQuad * stride);
  }
  if (done < depth) {
    float rest[kChunk] = {};
    std::memcpy(rest, x + done, (depth - done) * sizeof(float));
    total += quantize_chunk(rest, inverse, stride, ceil_div(depth - done, kQuad),
                            quads + done / kQuad * stride);
  }
  *scale = largest / 127.0f;
  *sum = total;
}

// e^x to about 2 units in the last place (Cephes' expf), within [-87, 88]; NaN stays NaN.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
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

struct Identity {
  static float apply(float x) { return x; }
};

struct Relu {
  // Written so that NaN stays NaN.
  static float apply(float x) { return x < 0.0f ? 0.0f : x; }
};

struct Silu {
  static float apply(float x) { return x / (1.0f + exponential(-x)); }
};

struct GeluTanh {
  // ½(1 + tanh u) is the logistic function of 2u.
  static float apply(float x) {
    const float u = 0.7978845608f * (x + 0.044715f * (x * x * x));
    return x / (1.0f + exponential(-2.0f * u));
  }
};

struct Gelu {
  // erf by Abramowitz and Stegun 7.1.26, to 1.5e-7.
  static float apply(float x) {
    const float z = from_bits(to_bits(x) & 0x7FFFFFFF) * 0.7071067812f;
    const float t = 1.0f / (1.0f + 0.3275911f * z);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const float tail = 0.5f * (p * t * exponential(-z * z));  // 1 - Φ(|x|)
    return x * (x < 0.0f ? tail : 1.0f - tail);
  }
};

template <class Function>
void activate_with(const float* x, const float* up, size_t count, float* y) {
  if (up == nullptr) {
    for (size_t i = 0; i < count; ++i) y[i] = Function::apply(x[i]);
  } else {
    for (size_t i = 0; i < count; ++i) y[i] = Function::apply(x[i]) * up[i];
  }
}

void activate(drl_activation activation, const float* x, const float* up, size_t count, float* y) {
  switch (activation) {
    case DRL_ACTIVATION_RELU: return activate_with<Relu>(x, up, count, y);
    case DRL_ACTIVATION_GELU: return activate_with<Gelu>(x, up, count, y);
    case DRL_ACTIVATION_GELU_TANH: return activate_with<GeluTanh>(x, up, count, y);
    case DRL_ACTIVATION_SILU: return activate_with<Silu>(x, up, count, y);
    case DRL_ACTIVATION_NONE: return activate_with<Identity>(x, up, count, y);
  }
}

inline void scale_sums(const int32_t* sums, float row_scale, const float* column_scales,
                       float* out) {
  for (size_t i = 0; i < kPanelColumns; ++i) {
    out[i] = static_cast<float>(sums[i]) * (row_scale * column_scales[i]);
  }
}

void dequantize(const int32_t* sums, float row_scale, const Dequantization& how, float* y) {
  float padded[kPanelColumns];
  float* out = how.columns == kPanelColumns ? y : padded;
  scale_sums(sums, row_scale, how.column_scales, out);
  if (how.bias != nullptr) {
    for (size_t i = 0; i < how.columns; ++i) out[i] += how.bias[i];
  }
  if (how.activation != DRL_ACTIVATION_NONE) {
    activate(how.activation, out, nullptr, how.columns, out);
  }
  if (out == padded) std::memcpy(y, padded, how.columns * sizeof(float));
}

void accumulate(const float* x, float factor, size_t count, float* y) {
  for (size_t i = 0; i < count; ++i) y[i] += factor * x[i];
}

// A tile function for each number of rows up to Micro::kRows, chosen by that number.
template <class Micro, size_t Rows = Micro::kRows>
void run_tile(size_t rows, const int32_t* activations, const int32_t* row_sums,
              const uint8_t* panel, size_t quads, int32_t* sums) {
  if constexpr (Rows > 0) {
    if (rows == Rows) {
      Micro::template tile<Rows>(activations, row_sums, panel, quads, sums);
    } else {
      run_tile<Micro, Rows - 1>(rows, activations, row_sums, panel, quads, sums);
    }
  }
}

template <class Micro>
constexpr Kernels make_kernels() {
  static_assert(Micro::kRows <= kMaxTileRows, "tiles are stored in buffers of kMaxTileRows");
  return {Micro::kRows, quantize_row, run_tile<Micro>, dequantize, activate, accumulate};
}

}  // namespace
}  // namespace drl
