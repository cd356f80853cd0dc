// Scores of experts: a product with a matrix of few columns (see attention_loops.h).
#pragma once

#include "attention_loops.h"

namespace drl {
namespace {

template <class Vector>
struct ProjectTile {
  const float* x;
  size_t depth;
  const float* weight;
  size_t columns;
  float* y;
  size_t stride;

  template <size_t Rows>
  void run(size_t row) const {
    // With one row, whole rows of the weight are read where registers suffice for the sums.
    if constexpr (Rows == 1 && Vector::kRows > 1) {
      run<Rows, 4>(row, 0);
    } else {
      run<Rows, 2>(row, 0);
    }
  }

 private:
  template <size_t Rows, size_t Vectors>
  void run(size_t row, size_t column) const {
    if constexpr (Vectors > 1) {
      for (; column + Vectors * kFloatLanes <= columns; column += Vectors * kFloatLanes) {
        panel<Rows, Vectors>(row, column, kFloatLanes);
      }
      run<Rows, Vectors / 2>(row, column);
    } else {
      for (; column < columns; column += kFloatLanes) {
        panel<Rows, 1>(row, column, smaller(columns - column, kFloatLanes));
      }
    }
  }

  // Even and odd places of the depth have a sum each, since one would wait for itself.
  template <size_t Rows, size_t Vectors>
  void panel(size_t row, size_t column, size_t lanes) const {
    Vector even[Rows][Vectors], odd[Rows][Vectors];
    unrolled<Rows>([&](size_t i) {
      unrolled<Vectors>([&](size_t j) { even[i][j] = odd[i][j] = Vector::broadcast(0.0f); });
    });
    const float* from = x + row * depth;
    const float* weights = weight + column;
    size_t k = 0;
    for (; k + 2 <= depth; k += 2) {
      add<Rows, Vectors>(from + k, weights + k * columns, lanes, even);
      add<Rows, Vectors>(from + k + 1, weights + (k + 1) * columns, lanes, odd);
    }
    if (k < depth) add<Rows, Vectors>(from + k, weights + k * columns, lanes, even);
    unrolled<Rows>([&](size_t i) {
      unrolled<Vectors>([&](size_t j) {
        const Vector sum = even[i][j] + odd[i][j];
        sum.store(y + (row + i) * stride + column + j * kFloatLanes, lanes);
      });
    });
  }

  template <size_t Rows, size_t Vectors>
  [[gnu::always_inline]] void add(const float* from, const float* weights, size_t lanes,
                                  Vector (&sums)[Rows][Vectors]) const {
    Vector w[Vectors];
    unrolled<Vectors>([&](size_t j) {
      const float* part = weights + j * kFloatLanes;
      w[j] = lanes == kFloatLanes ? Vector::load(part) : Vector::load(part, lanes);
    });
    unrolled<Rows>([&](size_t i) {
      const Vector value = Vector::broadcast(from[i * depth]);
      unrolled<Vectors>([&](size_t j) { sums[i][j] = sums[i][j] + value * w[j]; });
    });
  }
};

template <class Vector>
void project(const float* x, size_t rows, size_t depth, const float* weight, size_t columns,
             float* y, size_t stride) {
  for_rows<Vector::kRows>(0, rows, ProjectTile<Vector>{x, depth, weight, columns, y, stride});
}

}  // namespace
}  // namespace drl
