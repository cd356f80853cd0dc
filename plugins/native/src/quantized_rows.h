// Rows of activations in int8, in the blocks that tiles read, and their products with a panel.
#pragma once

#include "packed_weights.h"
#include "workspace.h"

namespace drl {

// Consecutive rows that pass through a tile together.
struct RowBlock {
  size_t first;
  size_t rows;
};

// Block `index` of `rows` rows, which are shared out evenly: 13 rows make 7 and 6, not 12 and 1.
inline RowBlock block_of(size_t rows, size_t tile_rows, size_t index) {
  const size_t blocks = ceil_div(rows, tile_rows);
  const size_t first = index * rows / blocks;
  return {first, (index + 1) * rows / blocks - first};
}

class QuantizedRows {
 public:
  QuantizedRows(Carver& carver, size_t rows, size_t depth)
      : depth_(depth),
        quads_(ceil_div(depth, kQuad)),
        values_(carver.take<int32_t>(rows * quads_)),
        scales_(carver.take<float>(rows)),
        sums_(carver.take<int32_t>(rows)) {}

  // Fills a block; `row_at(i)` is where row i of all rows lies.
  template <class RowAt>
  void quantize(const Kernels& kernels, RowBlock block, const RowAt& row_at) {
    for (size_t i = 0; i < block.rows; ++i) {
      const size_t row = block.first + i;
      kernels.quantize_row(row_at(row), depth_, block.rows, values_ + block.first * quads_ + i,
                           scales_ + row, sums_ + row);
    }
  }

  // Calls store(row, sums, scale) with the sums [kPanelColumns] of every row of a block.
  template <class Store>
  void multiply(const Kernels& kernels, RowBlock block, const uint8_t* panel,
                const Store& store) const {
    alignas(64) int32_t sums[kMaxTileRows * kPanelColumns];
    kernels.tile(block.rows, values_ + block.first * quads_, sums_ + block.first, panel, quads_,
                 sums);
    for (size_t i = 0; i < block.rows; ++i) {
      const size_t row = block.first + i;
      store(row, sums + i * kPanelColumns, scales_[row]);
    }
  }

 private:
  size_t depth_;
  size_t quads_;
  int32_t* values_;  // by block: [quads][rows of the block]
  float* scales_;
  int32_t* sums_;
};

}  // namespace drl
