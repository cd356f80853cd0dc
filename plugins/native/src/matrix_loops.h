// Products of rows with a matrix [depth, columns] of floats as a model stores it (see
// attention_loops.h).
//
// A product is added up along the depth, in ascending order, by fused multiply-adds.
#pragma once

#include "attention_loops.h"

namespace drl {
namespace {

// So many of the matrix's rows pass together: of a tile's columns they fit in the second cache.
constexpr size_t kDepthBlock = 256;
// Weights are asked for so many bytes ahead, since they lie too far apart for processors to guess.
constexpr size_t kMatrixAhead = 8192;

// A tile of rows, for `Vectors` vectors of columns and a block of the depth.
template <class Vector, size_t Vectors>
struct MatrixTile {
  static constexpr size_t kColumns = Vectors * kFloatLanes;

  const float* weight;  // [count, stride], of this block
  size_t stride;
  size_t count;
  bool far;        // whether weights lie where they were stored, and are asked for ahead
  const float* x;  // [rows, depth], from this block on
  size_t depth;
  bool first;  // whether sums begin here, or go on from y
  float* y;    // [rows, y_stride]
  size_t y_stride;

  template <size_t Rows>
  void run(size_t row) const {
    Vector sums[Rows][Vectors];
    unrolled<Rows>([&](size_t i) {
      unrolled<Vectors>([&](size_t j) {
        const float* start = y + (row + i) * y_stride + j * kFloatLanes;
        sums[i][j] = first ? Vector::broadcast(0.0f) : Vector::load(start);
      });
    });
    const float* rows = x + row * depth;
    if (far && row == 0) {
      add_products<Rows, true>(rows, sums);
    } else {
      add_products<Rows, false>(rows, sums);
    }
    unrolled<Rows>([&](size_t i) {
      unrolled<Vectors>([&](size_t j) {
        sums[i][j].store(y + (row + i) * y_stride + j * kFloatLanes);
      });
    });
  }

 private:
  template <size_t Rows, bool Ahead>
  [[gnu::always_inline]] void add_products(const float* rows,
                                           Vector (&sums)[Rows][Vectors]) const {
    constexpr size_t kAheadRows = kMatrixAhead / (kColumns * sizeof(float));
    for (size_t k = 0; k < count; ++k) {
      const float* weights = weight + k * stride;
      if constexpr (Ahead) {
        // A number, since it may be beyond all weights, where pointers must not point.
        const uintptr_t next = reinterpret_cast<uintptr_t>(weights) +
                               kAheadRows * stride * sizeof(float);
        for (size_t i = 0; i < kColumns * sizeof(float); i += kLineBytes) {
          Vector::prefetch(next + i);
        }
      }
      Vector loaded[Vectors];
      unrolled<Vectors>([&](size_t j) {
        loaded[j] = Vector::load(weights + j * kFloatLanes).in_register();
      });
      unrolled<Rows>([&](size_t i) {
        const Vector value = Vector::broadcast(rows[i * depth + k]);
        unrolled<Vectors>([&](size_t j) {
          sums[i][j] = multiply_add(value, loaded[j], sums[i][j]);
        });
      });
    }
  }
};

// The product with `columns` columns from one on, as many as a tile has or fewer.
template <class Vector, size_t Vectors, size_t Rows>
void multiply_columns(const MatrixColumns& matrix, size_t column, size_t columns, const float* x,
                      size_t rows, float* y, size_t stride) {
  constexpr size_t kColumns = Vectors * kFloatLanes;
  alignas(64) float packed[kDepthBlock * kColumns];
  alignas(64) float totals[Rows * kColumns];
  const bool whole = columns == kColumns;
  // Rows of the matrix lie far apart: they are laid together where more than one tile reads them.
  const bool packs = rows > Rows || !whole;
  for (size_t first = 0; first < matrix.depth; first += kDepthBlock) {
    const size_t count = smaller(kDepthBlock, matrix.depth - first);
    const float* weight = matrix.weight + first * matrix.stride + column;
    MatrixTile<Vector, Vectors> tile{weight,       matrix.stride, count,      !packs, x + first,
                                     matrix.depth, first == 0,    y + column, stride};
    if (packs) {
      for (size_t k = 0; k < count; ++k) {
        std::memcpy(packed + k * kColumns, weight + k * matrix.stride, columns * sizeof(float));
        for (size_t j = columns; j < kColumns; ++j) packed[k * kColumns + j] = 0.0f;
      }
      tile.weight = packed;
      tile.stride = kColumns;
    }
    if (whole) {
      for_rows<Rows>(0, rows, tile);
      continue;
    }
    // What is beyond the last column has no place in y.
    for (size_t row = 0; row < rows; row += Rows) {
      const size_t together = smaller(Rows, rows - row);
      for (size_t i = 0; first > 0 && i < together; ++i) {
        std::memcpy(totals + i * kColumns, y + (row + i) * stride + column,
                    columns * sizeof(float));
      }
      tile.x = x + row * matrix.depth + first;
      tile.y = totals;
      tile.y_stride = kColumns;
      for_rows<Rows>(0, together, tile);
      for (size_t i = 0; i < together; ++i) {
        std::memcpy(y + (row + i) * stride + column, totals + i * kColumns,
                    columns * sizeof(float));
      }
    }
  }
}

// The products with the columns from one on, as far as they fill tiles; where it ended.
template <class Vector, size_t Vectors, size_t Rows>
size_t multiply_tiles(const MatrixColumns& matrix, size_t column, const float* x, size_t rows,
                      float* y, size_t stride) {
  constexpr size_t kColumns = Vectors * kFloatLanes;
  for (; column + kColumns <= matrix.count; column += kColumns) {
    multiply_columns<Vector, Vectors, Rows>(matrix, column, kColumns, x, rows, y, stride);
  }
  return column;
}

template <class Vector>
void multiply(const MatrixColumns& matrix, const float* x, size_t rows, float* y, size_t stride) {
  constexpr size_t kVectors = Vector::kMatrixVectors, kRows = Vector::kMatrixRows;
  size_t column = 0;
  // A single row waits for memory, which is fastest read in long pieces.
  if (rows == 1) {
    column = multiply_tiles<Vector, Vector::kWideVectors, 1>(matrix, column, x, rows, y, stride);
  }
  column = multiply_tiles<Vector, kVectors, kRows>(matrix, column, x, rows, y, stride);
  if (column < matrix.count) {
    multiply_columns<Vector, kVectors, kRows>(matrix, column, matrix.count - column, x, rows, y,
                                              stride);
  }
}

}  // namespace
}  // namespace drl
