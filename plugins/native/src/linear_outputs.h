// Where the columns of a linear go: to one output, or split over several.
#pragma once

#include <cstring>

#include "drl_native.h"

namespace drl {

class LinearOutputs {
 public:
  explicit LinearOutputs(const drl_output (&outputs)[3]) : outputs_(outputs) {}

  // Whether they have room for `columns` columns and no more; a residual needs a single output.
  drl_status check(size_t columns, const float* residual) const {
    size_t found = 0, count = 0;
    for (const drl_output& output : outputs_) {
      if (output.columns == 0) continue;
      if (output.y == nullptr || output.columns > columns) return DRL_BAD_ARGUMENT;
      found += output.columns;
      ++count;
    }
    if (found != columns) return DRL_SHAPES_DIFFER;
    return residual != nullptr && count != 1 ? DRL_BAD_ARGUMENT : DRL_OK;
  }

  // Where some columns of row 0 lie, and how far from there those of the next row.
  struct Destination {
    float* y;
    size_t stride;
  };

  // Null if the columns lie in more than one output.
  Destination inside_one(size_t column, size_t columns) const {
    for (const drl_output& output : outputs_) {
      if (column + columns <= output.columns) return {output.y + column, output.columns};
      if (column < output.columns) break;
      column -= output.columns;
    }
    return {nullptr, 0};
  }

  // Writes columns of a row that lie in several.
  void split(size_t row, size_t column, size_t columns, const float* values) const {
    for (const drl_output& output : outputs_) {
      const size_t left = column < output.columns ? output.columns - column : 0;
      const size_t count = columns < left ? columns : left;
      if (count > 0) {
        float* y = output.y + row * output.columns + column;
        std::memcpy(y, values, count * sizeof(float));
      }
      values += count;
      columns -= count;
      column = left > 0 ? 0 : column - output.columns;
    }
  }

 private:
  const drl_output (&outputs_)[3];
};

}  // namespace drl
