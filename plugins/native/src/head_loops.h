// Logits of a head of floats: products of rows with columns that lie along the depth, too (see
// attention_loops.h).
//
// A product has a sum in each of kFloatLanes lanes: number k of the depth goes to lane k mod
// kFloatLanes, added by a fused multiply-add, in ascending order. Then the lanes are added as a tree.
#pragma once

#include "attention_loops.h"

namespace drl {
namespace {

// A tile of rows, for each kTileSlots columns; `Columns` of them pass together.
template <class Vector, size_t Columns>
struct HeadTile {
  const HeadColumns& columns;
  const float* x;
  size_t tiles;  // of rows
  float* y;
  size_t stride;
  size_t column;

  template <size_t Rows>
  [[gnu::flatten]] void run(size_t row) const {
    Vector sums[Rows][kTileSlots];
    // Weights are asked for ahead, as this code waits for memory where rows are few. Each tile asks
    // for its share, since it would wait as well if one asked for all.
    if (tiles == 1) {
      add_products<Rows, kTileSlots>(row, sums);
    } else if (tiles == 2) {
      add_products<Rows, kTileSlots / 2>(row, sums);
    } else {
      add_products<Rows, 1>(row, sums);
    }
    const size_t left = columns.count - column;
    for (size_t i = 0; i < Rows; ++i) {
      float totals[kTileSlots];
      float* out = y + (row + i) * stride + column;
      Vector::totals(sums[i], left < kTileSlots ? totals : out);
      for (size_t j = 0; left < kTileSlots && j < left; ++j) out[j] = totals[j];
    }
  }

 private:
  template <size_t Rows, size_t Share>
  [[gnu::always_inline]] void add_products(size_t row, Vector (&sums)[Rows][kTileSlots]) const {
    constexpr size_t kLines = (Share * Columns + kTileSlots - 1) / kTileSlots;
    const size_t next = kTileSlots + row / Vector::kHeadRows * Share;
    unrolled<kTileSlots / Columns>([&](size_t i) {
      pass<Rows, kLines>(row, i * Columns, next + i * kLines, sums);
    });
  }

  // Asks for kLines columns from `next` on, counted from this tile's, beside its own work.
  template <size_t Rows, size_t kLines>
  void pass(size_t row, size_t first, size_t next, Vector (&all)[Rows][kTileSlots]) const {
    const size_t depth = columns.depth;
    const float* rows = x + row * depth;
    const float* weights[Columns];
    // Beyond the last column its weights stand in, and nothing is written.
    unrolled<Columns>([&](size_t i) {
      weights[i] = columns.weight + smaller(column + first + i, columns.count - 1) * depth;
    });
    // A number, since it may be beyond all weights, where pointers must not point.
    const uintptr_t ahead = reinterpret_cast<uintptr_t>(columns.weight) +
                            (column + next) * depth * sizeof(float);
    Vector sums[Rows][Columns];
    unrolled<Rows>([&](size_t i) {
      unrolled<Columns>([&](size_t j) { sums[i][j] = Vector::broadcast(0.0f); });
    });
    size_t done = 0;
    for (; done + kFloatLanes <= depth; done += kFloatLanes) {
      for (size_t i = 0; i < kLines; ++i) {
        Vector::prefetch(ahead + (i * depth + done) * sizeof(float));
      }
      add(rows, weights, sums, [&](const float* v) { return Vector::load(v + done); });
    }
    const size_t rest = depth - done;
    if (rest > 0) {
      add(rows, weights, sums, [&](const float* v) { return Vector::load(v + done, rest); });
    }
    unrolled<Rows>([&](size_t i) {
      unrolled<Columns>([&](size_t j) { all[i][first + j] = sums[i][j]; });
    });
  }

  template <size_t Rows, class Load>
  [[gnu::always_inline]] void add(const float* rows, const float* const (&weights)[Columns],
                                  Vector (&sums)[Rows][Columns], const Load& load) const {
    Vector weight[Columns];
    unrolled<Columns>([&](size_t i) { weight[i] = load(weights[i]).in_register(); });
    unrolled<Rows>([&](size_t i) {
      const Vector value = load(rows + i * columns.depth).in_register();
      unrolled<Columns>([&](size_t j) {
        sums[i][j] = multiply_add(value, weight[j], sums[i][j]);
      });
    });
  }
};

template <class Vector, size_t Columns>
void head_products(const HeadColumns& columns, const float* x, size_t rows, float* y,
                   size_t stride) {
  const size_t tiles = (rows + Vector::kHeadRows - 1) / Vector::kHeadRows;
  for (size_t column = 0; column < columns.count; column += kTileSlots) {
    const HeadTile<Vector, Columns> tile{columns, x, tiles, y, stride, column};
    for_rows<Vector::kHeadRows>(0, rows, tile);
  }
}

template <class Vector>
void head(const HeadColumns& columns, const float* x, size_t rows, float* y, size_t stride) {
  // With few rows all depends on memory, which is fastest read in its own order.
  if (rows <= Vector::kHeadRows / 2) {
    head_products<Vector, 1>(columns, x, rows, y, stride);
  } else {
    head_products<Vector, Vector::kHeadColumns>(columns, x, rows, y, stride);
  }
  for (size_t row = 0; row < rows; ++row) {
    scale_scores(y + row * stride, columns.factor, columns.bias, columns.count);
  }
}

}  // namespace
}  // namespace drl
