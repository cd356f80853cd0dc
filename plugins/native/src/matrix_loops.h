// Products of rows with a matrix [depth, columns] of floats as a model stores it, or with a panel of
// one (see attention_loops.h and float_weights.h).
//
// A product is added up along the depth, in ascending order, by fused multiply-adds.
#pragma once

#include "attention_loops.h"
#include "row_blocks.h"

namespace drl {
namespace {

// So many of the matrix's rows pass together: of a tile's columns they fit in the fastest cache,
// next to the rows of x.
constexpr size_t kDepthBlock = 128;
// A single tile of rows asks for weights so many bytes ahead.
constexpr size_t kMatrixAhead = 8192;

// Which weights are asked for while a block is multiplied. Processors do not guess where rows lie
// far apart, and with many rows they guess only while weights are read and not while sums are added
// up: without asking, a product would wait for memory first and then compute.
//
// For row k of the block it is line k from `start` on, but from row `turn` on `then` is the start.
// Numbers, since they may be beyond all weights, where pointers must not point.
struct Ahead {
  uintptr_t start;
  size_t turn;
  uintptr_t then;
};

// Rows of x, for `Vectors` vectors of columns and a block of the depth.
template <class Vector, size_t Vectors>
struct MatrixTile {
  static constexpr size_t kColumns = Vectors * kFloatLanes;
  static constexpr size_t kLines = kColumns * sizeof(float) / kLineBytes;

  const float* weight;  // [count, stride], of this block
  size_t stride;
  size_t count;
  const float* x;  // [rows, x_stride], from this block on
  size_t x_stride;
  bool first;  // whether sums begin here, or go on from y
  float* y;    // [rows, y_stride]
  size_t y_stride;
  Ahead next;
  size_t row_bytes;  // of the matrix, where it is asked for

  // Multiplies a few rows, and asks for `Lines` lines of each row that is read later.
  template <size_t Rows, size_t Lines>
  [[gnu::flatten]] void run(size_t row, size_t line) const {
    Vector sums[Rows][Vectors];
    unrolled<Rows>([&](size_t i) {
      unrolled<Vectors>([&](size_t j) {
        const float* start = y + (row + i) * y_stride + j * kFloatLanes;
        sums[i][j] = first ? Vector::broadcast(0.0f) : Vector::load(start);
      });
    });
    const size_t turn = smaller(next.turn, count);
    add_products<Rows, Lines>(row, 0, turn, next.start + line * kLineBytes, sums);
    add_products<Rows, Lines>(row, turn, count, next.then + line * kLineBytes, sums);
    unrolled<Rows>([&](size_t i) {
      unrolled<Vectors>([&](size_t j) {
        sums[i][j].store(y + (row + i) * y_stride + j * kFloatLanes);
      });
    });
  }

 private:
  template <size_t Rows, size_t Lines>
  void add_products(size_t row, size_t begin, size_t end, uintptr_t ahead,
                    Vector (&sums)[Rows][Vectors]) const {
    const float* weights = weight + begin * stride;
    const float* rows = x + row * x_stride;
    for (size_t k = begin; k < end; ++k) {
      // No lambda: GCC drops calls of functions that only prefetch.
      for (size_t i = 0; i < Lines; ++i) Vector::prefetch(ahead + i * kLineBytes);
      Vector loaded[Vectors];
      unrolled<Vectors>([&](size_t j) {
        loaded[j] = Vector::load(weights + j * kFloatLanes).in_register();
      });
      unrolled<Rows>([&](size_t i) {
        const Vector value = Vector::broadcast(rows[i * x_stride + k]);
        unrolled<Vectors>([&](size_t j) {
          sums[i][j] = multiply_add(value, loaded[j], sums[i][j]);
        });
      });
      weights += stride;
      ahead += row_bytes;
    }
  }
};

// Calls tile.run for a block of at most `Rows` rows.
template <size_t Rows, size_t Lines, class Tile>
void run_tile(const Tile& tile, RowBlock block, size_t line) {
  if constexpr (Rows > 0) {
    if (block.rows == Rows) {
      tile.template run<Rows, Lines>(block.first, line);
    } else {
      run_tile<Rows - 1, Lines>(tile, block, line);
    }
  }
}

// All rows, in tiles that ask for a share of the lines each.
template <size_t Rows, class Tile>
void run_tiles(const Tile& tile, size_t rows) {
  constexpr size_t kHalf = (Tile::kLines + 1) / 2;
  const size_t tiles = (rows + Rows - 1) / Rows;
  const size_t share = tiles == 1 ? Tile::kLines : tiles <= 3 ? kHalf : 1;
  for (size_t index = 0; index < tiles; ++index) {
    const RowBlock block = block_of(rows, Rows, index);
    const size_t line = index * share;
    if (line + share > Tile::kLines) {
      run_tile<Rows, 0>(tile, block, line);
    } else if (share == Tile::kLines) {
      run_tile<Rows, Tile::kLines>(tile, block, line);
    } else if (share == kHalf) {
      run_tile<Rows, kHalf>(tile, block, line);
    } else {
      run_tile<Rows, 1>(tile, block, line);
    }
  }
}

// What is asked for `distance` rows ahead, where `left` rows are left from `weight` on.
inline Ahead ahead(const float* weight, size_t row_bytes, size_t distance, size_t left,
                   const float* following) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(weight) + distance * row_bytes;
  const uintptr_t then = reinterpret_cast<uintptr_t>(following);
  if (distance <= left) return {start, left - distance, then};
  return {then + (distance - left) * row_bytes, SIZE_MAX, 0};
}

// The product with `columns` columns from one on, as many as a tile has or fewer.
template <class Vector, size_t Vectors, size_t Rows>
void multiply_columns(const MatrixColumns& matrix, size_t column, size_t columns, const FloatRows& x,
                      float* y, size_t stride) {
  constexpr size_t kColumns = Vectors * kFloatLanes;
  alignas(64) float packed[kDepthBlock * kColumns];
  alignas(64) float totals[Rows * kColumns];
  const bool whole = columns == kColumns;
  // Rows of the matrix may lie far apart: they are laid together where more than one tile reads
  // them.
  const bool packs = !whole || (x.count > Rows && matrix.stride > kColumns);
  const float* start = matrix.weight + column;
  const float* following = column + kColumns < matrix.count ? start + kColumns : matrix.next;
  const size_t row_bytes = matrix.stride * sizeof(float);
  for (size_t first = 0; first < matrix.depth; first += kDepthBlock) {
    const size_t count = smaller(kDepthBlock, matrix.depth - first);
    const float* weight = start + first * matrix.stride;
    const size_t distance = x.count > Rows ? count : kMatrixAhead / (kColumns * sizeof(float));
    MatrixTile<Vector, Vectors> tile{weight,
                                     matrix.stride,
                                     count,
                                     x.x + first,
                                     x.stride,
                                     first == 0,
                                     y + column,
                                     stride,
                                     ahead(weight, row_bytes, distance, matrix.depth - first,
                                           following == nullptr ? weight : following),
                                     row_bytes};
    if (packs) {
      for (size_t k = 0; k < count; ++k) {
        std::memcpy(packed + k * kColumns, weight + k * matrix.stride, columns * sizeof(float));
        for (size_t j = columns; j < kColumns; ++j) packed[k * kColumns + j] = 0.0f;
      }
      tile.weight = packed;
      tile.stride = kColumns;
    }
    if (whole) {
      run_tiles<Rows>(tile, x.count);
      continue;
    }
    // What is beyond the last column has no place in y.
    for (size_t row = 0; row < x.count; row += Rows) {
      const size_t together = smaller(Rows, x.count - row);
      for (size_t i = 0; first > 0 && i < together; ++i) {
        std::memcpy(totals + i * kColumns, y + (row + i) * stride + column,
                    columns * sizeof(float));
      }
      tile.x = x.x + row * x.stride + first;
      tile.y = totals;
      tile.y_stride = kColumns;
      run_tiles<Rows>(tile, together);
      for (size_t i = 0; i < together; ++i) {
        std::memcpy(y + (row + i) * stride + column, totals + i * kColumns,
                    columns * sizeof(float));
      }
    }
  }
}

// The products with the columns from one on, as far as they fill tiles; where it ended.
template <class Vector, size_t Vectors, size_t Rows>
size_t multiply_tiles(const MatrixColumns& matrix, size_t column, const FloatRows& x, float* y,
                      size_t stride) {
  constexpr size_t kColumns = Vectors * kFloatLanes;
  for (; column + kColumns <= matrix.count; column += kColumns) {
    multiply_columns<Vector, Vectors, Rows>(matrix, column, kColumns, x, y, stride);
  }
  return column;
}

template <class Vector>
void multiply(const MatrixColumns& matrix, const FloatRows& x, float* y, size_t stride) {
  constexpr size_t kVectors = Vector::kMatrixVectors, kRows = Vector::kMatrixRows;
  size_t column = 0;
  // A single row waits for memory, which is fastest read in long pieces.
  if (x.count == 1) {
    column = multiply_tiles<Vector, Vector::kWideVectors, 1>(matrix, column, x, y, stride);
  }
  column = multiply_tiles<Vector, kVectors, kRows>(matrix, column, x, y, stride);
  if (column < matrix.count) {
    multiply_columns<Vector, kVectors, kRows>(matrix, column, matrix.count - column, x, y, stride);
  }
}

}  // namespace
}  // namespace drl
