// The loops over one row, written once and compiled for every instruction set that includes them;
// see exponential.h.
#pragma once

#include "activations.h"
#include "quantize_row.h"

namespace drl {
namespace {

// One row of a whole panel, in one pass: it comes from memory once, and goes there once.
template <class Function>
[[gnu::always_inline]] inline void dequantize_row(const float* totals, float row_scale,
                                                  const Dequantization& how, const float* bias,
                                                  const float* residual, float* y) {
  float out[kPanelColumns];
  for (size_t i = 0; i < kPanelColumns; ++i) {
    out[i] = totals[i] * (row_scale * how.column_scales[i]) * how.factor;
  }
  if (bias != nullptr) {
    for (size_t i = 0; i < kPanelColumns; ++i) out[i] += bias[i];
  }
  for (size_t i = 0; i < kPanelColumns; ++i) out[i] = Function::apply(out[i]);
  if (residual != nullptr) {
    for (size_t i = 0; i < kPanelColumns; ++i) out[i] += residual[i];
  }
  std::memcpy(y, out, sizeof out);
}

template <class Function>
void dequantize_rows(const float* totals, const float* row_scales, size_t rows,
                     const Dequantization& how, const float* residual, float* y, size_t stride) {
  const size_t bytes = how.columns * sizeof(float);
  float bias[kPanelColumns] = {}, rest[kPanelColumns] = {}, padded[kPanelColumns];
  const bool whole = how.columns == kPanelColumns;
  if (!whole && how.bias != nullptr) std::memcpy(bias, how.bias, bytes);
  for (size_t row = 0; row < rows; ++row, totals += kPanelColumns, y += stride) {
    const float* added = residual == nullptr ? nullptr : residual + row * stride;
    if (whole) {
      dequantize_row<Function>(totals, row_scales[row], how, how.bias, added, y);
      continue;
    }
    if (added != nullptr) std::memcpy(rest, added, bytes);
    dequantize_row<Function>(totals, row_scales[row], how, how.bias == nullptr ? nullptr : bias,
                             added == nullptr ? nullptr : rest, padded);
    std::memcpy(y, padded, bytes);
  }
}

void dequantize(const float* totals, const float* row_scales, size_t rows,
                const Dequantization& how, const float* residual, float* y, size_t stride) {
  const auto with = [&](auto function) {
    dequantize_rows<decltype(function)>(totals, row_scales, rows, how, residual, y, stride);
  };
  switch (how.activation) {
    case DRL_ACTIVATION_RELU: return with(Relu{});
    case DRL_ACTIVATION_GELU: return with(Gelu{});
    case DRL_ACTIVATION_GELU_TANH: return with(GeluTanh{});
    case DRL_ACTIVATION_SILU: return with(Silu{});
    case DRL_ACTIVATION_NONE: return with(Identity{});
  }
}

void accumulate(const float* x, float factor, size_t count, float* y) {
  for (size_t i = 0; i < count; ++i) y[i] += factor * x[i];
}

// The largest of kSumColumns numbers, found among integers, which keep the order of floats once
// negative ones are turned around. NaN may count as the largest or not.
inline float largest_of(const float* x) {
  const auto turned = [](int32_t bits) { return bits ^ ((bits >> 31) & 0x7FFFFFFF); };
  int32_t largest = turned(kInfinityBits | INT32_MIN);
  for (size_t i = 0; i < kSumColumns; ++i) {
    const int32_t candidate = turned(to_bits(x[i]));
    largest = candidate > largest ? candidate : largest;
  }
  return from_bits(turned(largest));
}

ExponentialSum sum_exponentials(const float* x, size_t count) {
  float padded[kSumColumns];
  if (count < kSumColumns) {
    // Each adds e^-87 or less to a sum of at least 1, where that changes nothing.
    for (size_t i = 0; i < kSumColumns; ++i) {
      padded[i] = i < count ? x[i] : from_bits(kInfinityBits | INT32_MIN);
    }
    x = padded;
  }
  const float largest = largest_of(x);
  const bool infinite = (to_bits(largest) & 0x7FFFFFFF) >= kInfinityBits;
  const float shift = infinite ? 0.0f : largest;
  float values[kSumColumns];
  for (size_t i = 0; i < kSumColumns; ++i) values[i] = exponential(x[i] - shift);
  return {largest, sum_tree<kSumColumns>(values)};
}

// Calls the tile function for the rows there are, of one for each number up to Micro::kRows.
template <class Micro, drl_format Format, size_t Rows = Micro::kRows>
void run_tile(const TileRows& rows, Panel panel, size_t steps, float* totals) {
  if constexpr (Rows > 0) {
    if (rows.count != Rows) {
      run_tile<Micro, Format, Rows - 1>(rows, panel, steps, totals);
    } else if constexpr (has_blocks(Format)) {
      Micro::template blocks<Format, Rows>(rows, panel, steps, totals);
    } else {
      Micro::template int8<Rows>(rows, panel, steps, totals);
    }
  }
}

template <class Micro>
constexpr Kernels make_kernels() {
  static_assert(Micro::kRows <= kMaxTileRows, "tiles are stored in buffers of kMaxTileRows");
  static_assert(DRL_FORMAT_INT8 == 0 && DRL_FORMAT_INT4 == 1 && DRL_FORMAT_INT8_BLOCK == 2,
                "tiles are found by their format");
  return {Micro::kRows,
          quantize_row,
          normalize_row,
          {run_tile<Micro, DRL_FORMAT_INT8>, run_tile<Micro, DRL_FORMAT_INT4>,
           run_tile<Micro, DRL_FORMAT_INT8_BLOCK>},
          dequantize,
          activate,
          accumulate,
          sum_exponentials};
}

}  // namespace
}  // namespace drl
