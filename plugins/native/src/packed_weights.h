// A view of packed weights that have been checked: layout 2, little-endian.
//
// A linear has weights [columns, depth] as in y = x · Wᵀ, and `matrices` of them are stacked.
// Columns are padded to whole panels of 32 with weights and scales of 0.
//
//   int8  values       uint8 [matrices][panels][quads][32][4], quads = ⌈depth / 4⌉:
//                      q + 128 of weight (m, c, k) at [m][c / 32][k / 4][c % 32][k % 4]
//         scales       float [matrices][panels · 32]
//         weight       q · scale, q in [-127, 127]
//   int4  values       uint8 [matrices][panels][blocks][4][32][4], blocks = ⌈depth / 32⌉:
//                      byte [m][p][b][j][c][i] holds q + 8 for k = 32b + 4j + i in its low four
//                      bits and for k + 16 in the high ones
//         multipliers  uint8 [matrices][panels][blocks][32]
//         scales       float [matrices][panels · 32]
//         weight       q · multiplier · scale, q in [-7, 7]
//   int8-block  values as in int8 with ⌈depth / 32⌉ · 8 quads, multipliers and scales as in int4;
//               weight q · multiplier · scale, q in [-127, 127]
#pragma once

#include "kernels.h"

namespace drl {

class PackedWeights {
 public:
  // The view is valid only where the status is DRL_OK.
  static drl_status open(const drl_weights& weights, PackedWeights* out);

  drl_format format() const { return weights_.format; }
  size_t matrices() const { return weights_.matrices; }
  size_t columns() const { return weights_.columns; }
  size_t depth() const { return weights_.depth; }

  size_t panels() const { return ceil_div(weights_.columns, kPanelColumns); }
  // Columns of a panel that are not padding.
  size_t columns_of(size_t panel) const;
  // Values and multipliers together.
  size_t panel_bytes() const { return values_bytes_ + multipliers_bytes_; }
  Panel panel(size_t matrix, size_t panel) const;
  const float* scales(size_t matrix, size_t panel) const;

 private:
  drl_weights weights_{};
  size_t values_bytes_ = 0;       // of a panel
  size_t multipliers_bytes_ = 0;  // of a panel
};

// Quads of a quantised row, of which a tile reads every one: whole blocks where there are blocks.
inline size_t quads_of(drl_format format, size_t depth) {
  return has_blocks(format) ? ceil_div(depth, kBlock) * kBlockQuads : ceil_div(depth, kQuad);
}

// Steps of a tile: blocks where there are blocks, else quads.
inline size_t steps_of(drl_format format, size_t depth) {
  return ceil_div(depth, has_blocks(format) ? kBlock : kQuad);
}

}  // namespace drl
