// Rows that pass through a tile together.
#pragma once

#include "kernels.h"

namespace drl {

// Consecutive rows.
struct RowBlock {
  size_t first;
  size_t rows;
};

// Block `index` of `rows` rows, which are shared out evenly: 13 rows make 7 and 6, not 12 and 1.
[[gnu::always_inline]] inline RowBlock block_of(size_t rows, size_t tile_rows, size_t index) {
  const size_t blocks = ceil_div(rows, tile_rows);
  const size_t first = index * rows / blocks;
  return {first, (index + 1) * rows / blocks - first};
}

}  // namespace drl
