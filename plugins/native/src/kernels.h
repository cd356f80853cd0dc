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
// A tile never has more rows than this, whatever the instruction set.
constexpr size_t kMaxTileRows = 12;
// With more, a sum of products of ±127 could leave int32.
constexpr size_t kMaxDepth = 131072;
// Stored weights are q + 128: the dot-product instruction wants one unsigned operand.
constexpr int32_t kWeightBias = 128;

constexpr size_t ceil_div(size_t value, size_t unit) { return (value + unit - 1) / unit; }

// What becomes of a tile's sums: y = activation(sum · (row scale · column scale) + bias).
struct Dequantization {
  const float* column_scales;  // [kPanelColumns]
  const float* bias;           // [columns], or null
  drl_activation activation;
  size_t columns;  // of the panel, those that exist
};

struct Kernels {
  size_t tile_rows;  // the most rows of a tile

  // Quantises x[depth] to quads, `stride` apart and the last one filled with 0.
  //
  // scale = max|x| / 127, q = round(x · (127 / max|x|)), sum = Σ q. A row with NaN or infinity
  // gets scale NaN and q = 0; one whose largest magnitude is below kSmallestMagnitude gets 0.
  void (*quantize_row)(const float* x, size_t depth, size_t stride, int32_t* quads, float* scale,
                       int32_t* sum);

  // sums[row][column] = Σ_k q_x[row][k] · q_w[column][k] over one panel.
  //
  // `activations` holds quads [quads][rows], `row_sums` their sums, `panel` [quads][32][4].
  void (*tile)(size_t rows, const int32_t* activations, const int32_t* row_sums,
               const uint8_t* panel, size_t quads, int32_t* sums);

  // Writes one row of a tile's sums [kPanelColumns] to y[columns].
  void (*dequantize)(const int32_t* sums, float row_scale, const Dequantization& how, float* y);

  // y = activation(x), or activation(x) ⊙ up where up is not null.
  void (*activate)(drl_activation activation, const float* x, const float* up, size_t count,
                   float* y);

  // y += factor · x
  void (*accumulate)(const float* x, float factor, size_t count, float* y);
};

const Kernels& scalar_kernels();
// Null where this build has none.
const Kernels* avx2_kernels();
const Kernels* avx512vnni_kernels();

}  // namespace drl
