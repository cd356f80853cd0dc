// What an instruction set brings: the inner loops, behind one table of functions.
//
// Integer sums are exact and every floating-point step is written out without contraction, so all
// tables compute the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "drl_native.h"

namespace drl {

// Output channels that lie side by side in packed weights.
constexpr size_t kPanelColumns = 32;
// Consecutive values along the depth that one instruction multiplies and adds.
constexpr size_t kQuad = 4;
// Consecutive values along the depth that share a multiplier, where there are multipliers.
constexpr size_t kBlock = 32;
constexpr size_t kBlockQuads = kBlock / kQuad;
// The most numbers that sum_exponentials takes.
constexpr size_t kSumColumns = 128;
// A tile never has more rows than this, whatever the instruction set.
constexpr size_t kMaxTileRows = 12;
// With more, a sum of products of ±127 could leave int32.
constexpr size_t kMaxDepth = 131072;
// Stored weights are q + 128 and q + 8: the dot-product instruction wants one unsigned operand.
constexpr int32_t kInt8Bias = 128;
constexpr int32_t kInt4Bias = 8;
constexpr size_t kFormats = 3;

// Whether weights come in blocks that have a multiplier each.
constexpr bool has_blocks(drl_format format) { return format != DRL_FORMAT_INT8; }

constexpr int32_t bias_of(drl_format format) {
  return format == DRL_FORMAT_INT4 ? kInt4Bias : kInt8Bias;
}

// A caller may hand over any number.
constexpr bool exists(drl_activation activation) {
  return static_cast<uint32_t>(activation) <= DRL_ACTIVATION_SILU;
}

// Always inlined, since loops of one instruction set use them too (see exponential.h).
[[gnu::always_inline]] constexpr size_t ceil_div(size_t value, size_t unit) {
  return (value + unit - 1) / unit;
}
[[gnu::always_inline]] constexpr size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// A row of activations before it is quantised or multiplied: x · norm / sqrt(mean(x²) + epsilon).
struct RowSource {
  const float* x;     // [depth]
  const float* norm;  // [depth], or null: x as it is
  float epsilon;
  size_t depth;
};

// Where a quantised row goes. Rows of a tile are interleaved, so its numbers lie `stride` apart.
struct RowTarget {
  int32_t* quads;  // to whole quads, or to whole blocks where there are blocks, filled with 0
  // What takes the bias of the weights out of the sums: -bias·Σ q of the row, or of every block.
  int32_t* corrections;
  float* scale;
  size_t stride;
};

// 32 columns of packed weights.
struct Panel {
  const uint8_t* values;       // [quads][32][4], in int4 [blocks][4][32][4]
  const uint8_t* multipliers;  // [blocks][32]
};

// Activations of a tile, as RowTarget says.
struct TileRows {
  size_t count;
  const int32_t* quads;        // [quads][count]
  const int32_t* corrections;  // [count], or [blocks][count]
};

// y = residual + activation(total · (row scale · column scale) · factor + bias) for the totals of a
// tile.
struct Dequantization {
  const float* column_scales;  // [kPanelColumns]
  const float* bias;           // [columns], or null
  float factor;
  drl_activation activation;
  size_t columns;  // of the panel, those that exist
};

// Σ exp(x - max) of some numbers x, and their largest; see sum_exponentials.
struct ExponentialSum {
  float max;
  float sum;
};

// totals[row][column] = Σ_k q_x[row][k] · q_w[column][k] over one panel. `steps` are quads, or
// blocks, each of which counts multiplier times: sum · multiplier is rounded to float32, and blocks
// are added up in float32 in order.
using Tile = void (*)(const TileRows& rows, Panel panel, size_t steps, float* totals);

struct Kernels {
  size_t tile_rows;  // the most rows of a tile

  // scale = max|x̂| / 127, q = round(x̂ · (127 / max|x̂|)). A row with NaN or infinity gets scale
  // NaN and q = 0; one whose largest magnitude is below kSmallestMagnitude gets 0.
  void (*quantize_row)(const RowSource& row, drl_format format, const RowTarget& target);

  // y[depth] is the row of a source that has a norm.
  void (*normalize_row)(const RowSource& row, float* y);

  Tile tiles[kFormats];  // by drl_format

  // Writes a tile's totals [rows, kPanelColumns] to y[rows, columns], whose rows lie `stride` apart,
  // as those of the residual do, which may be null. y may be the totals, with their stride.
  void (*dequantize)(const float* totals, const float* row_scales, size_t rows,
                     const Dequantization& how, const float* residual, float* y, size_t stride);

  // y = activation(x), or activation(x) ⊙ up where up is not null.
  void (*activate)(drl_activation activation, const float* x, const float* up, size_t count,
                   float* y);

  // y += factor · x
  void (*accumulate)(const float* x, float factor, size_t count, float* y);

  // Of kSumColumns numbers at most: the largest, and the sum of exp(x - max), or of exp(x) where
  // the largest is infinite. NaN makes the sum NaN; it may count as the largest or not.
  ExponentialSum (*sum_exponentials)(const float* x, size_t count);
};

const Kernels& scalar_kernels();
// Null where this build has none.
const Kernels* avx2_kernels();
const Kernels* avx512vnni_kernels();

}  // namespace drl
