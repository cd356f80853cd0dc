// Sums of floats in an order that does not depend on how wide a processor's registers are.
#pragma once

#include <cstddef>

namespace drl {
namespace {

// Number i of many is added to lane i % kLanes, in order; then the lanes are added up as a tree.
constexpr size_t kLanes = 64;

// Adds the upper half to the lower one until one number is left. Overwrites them.
template <size_t Count>
float sum_tree(float* values) {
  if constexpr (Count > 1) {
    for (size_t i = 0; i < Count / 2; ++i) values[i] += values[i + Count / 2];
    return sum_tree<Count / 2>(values);
  } else {
    return values[0];
  }
}

}  // namespace
}  // namespace drl
