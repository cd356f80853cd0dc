// Rows of activations in int8, in the blocks that tiles read, and their products with a panel.
#pragma once

#include "packed_weights.h"
#include "parallel_for.h"
#include "row_blocks.h"
#include "task_size.h"
#include "workspace.h"

namespace drl {

class QuantizedRows {
 public:
  QuantizedRows(Carver& carver, drl_format format, size_t rows, size_t depth)
      : format_(format),
        depth_(depth),
        quads_(quads_of(format, depth)),
        groups_(has_blocks(format) ? ceil_div(depth, kBlock) : 1),
        values_(carver.take<int32_t>(rows * quads_)),
        corrections_(carver.take<int32_t>(rows * groups_)),
        scales_(carver.take<float>(rows)) {}

  // Fills a block; `source(i)` is the RowSource of row i of all rows.
  template <class Source>
  void quantize(const Kernels& kernels, RowBlock block, const Source& source) {
    for (size_t i = 0; i < block.rows; ++i) {
      const size_t row = block.first + i;
      const RowTarget target{values_ + block.first * quads_ + i,
                             corrections_ + block.first * groups_ + i, scales_ + row, block.rows};
      kernels.quantize_row(source(row), format_, target);
    }
  }

  // Fills all blocks of `rows` rows [rows.count, depth].
  void quantize(const Kernels& kernels, const drl_rows& rows, const drl_execution& execution) {
    const size_t blocks = ceil_div(rows.count, kernels.tile_rows);
    const auto one_block = [&](size_t index) {
      quantize(kernels, block_of(rows.count, kernels.tile_rows, index), [&](size_t row) {
        return RowSource{rows.x + row * depth_, rows.norm, rows.epsilon, depth_};
      });
    };
    const drl_execution serial{execution.isa, nullptr, nullptr};
    parallel_for(rows.count * depth_ < kSerialValues ? serial : execution, blocks, one_block);
  }

  // totals[i][kPanelColumns] for every row i of a block.
  void multiply(const Kernels& kernels, RowBlock block, Panel panel, float* totals) const {
    const TileRows rows{block.rows, values_ + block.first * quads_,
                        corrections_ + block.first * groups_};
    kernels.tiles[format_](rows, panel, steps_of(format_, depth_), totals);
  }

  // Of this row and those behind it.
  const float* scales(size_t row) const { return scales_ + row; }

 private:
  drl_format format_;
  size_t depth_;
  size_t quads_;
  size_t groups_;         // corrections of a row
  int32_t* values_;       // by block: [quads][rows of the block]
  int32_t* corrections_;  // by block: [groups][rows of the block]
  float* scales_;
};

}  // namespace drl
