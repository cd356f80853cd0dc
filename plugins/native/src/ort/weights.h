// Packed weights among the inputs of a node.
#pragma once

#include "call.h"

namespace drl::ort {

constexpr int64_t kPanel = 32;  // columns that are packed together
constexpr int64_t kBlock = 32;  // of the depth, with a multiplier each in int4
constexpr int64_t kMostDepth = 131072;  // sums of more could leave int32
constexpr size_t kNone = SIZE_MAX;

// Where a node has the parts of packed weights. Without multipliers they are int8, else int4.
struct WeightInputs {
  size_t values, scales, multipliers = kNone;
};

inline drl_weights read_weights(Call& call, const WeightInputs& inputs, int64_t matrices,
                                int64_t columns, int64_t depth) {
  const int64_t panels = (columns + kPanel - 1) / kPanel, blocks = (depth + kBlock - 1) / kBlock;
  drl_weights weights{};
  if (depth < 1 || depth > kMostDepth) {
    call.failure().say("%s must have a depth in [1, %" PRId64 "] and has %" PRId64,
                       call.name(inputs.values), kMostDepth, depth);
  }
  weights.matrices = static_cast<uint64_t>(matrices);
  weights.columns = static_cast<uint64_t>(columns);
  weights.depth = static_cast<uint64_t>(depth);
  if (inputs.multipliers != kNone) {
    weights.multipliers =
        call.values<uint8_t>(inputs.multipliers, {matrices, panels, blocks, kPanel});
  }
  weights.format = weights.multipliers == nullptr ? DRL_FORMAT_INT8 : DRL_FORMAT_INT4;
  const Shape values = weights.format == DRL_FORMAT_INT8
                           ? Shape{matrices, panels, (depth + 3) / 4, kPanel, 4}
                           : Shape{matrices, panels, blocks, 4, kPanel, 4};
  weights.values = call.values<uint8_t>(inputs.values, values, kRequired);
  weights.scales = call.values<float>(inputs.scales, {matrices, panels * kPanel}, kRequired);
  return weights;
}

}  // namespace drl::ort
