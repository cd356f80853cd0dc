// What products read, among the inputs of a node: rows, and weights that are packed or in panels.
#pragma once

#include "../float_weights.h"
#include "../kernels.h"
#include "call.h"

namespace drl::ort {

// The kernels' sizes as ONNX Runtime counts.
constexpr int64_t kPanel = kPanelColumns, kBlock = drl::kBlock, kQuad = drl::kQuad;
constexpr int64_t kMostDepth = kMaxDepth;
constexpr size_t kNone = SIZE_MAX;

// Where a node has the parts of packed weights. Without multipliers they are int8; else the fourth
// dimension of the values is the bits of a value.
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
  Shape values{matrices, panels, (depth + kQuad - 1) / kQuad, kPanel, kQuad};
  weights.format = DRL_FORMAT_INT8;
  if (weights.multipliers != nullptr) {
    const Tensor given = call.tensor(inputs.values);
    const int64_t bits = given.rank == 6 ? given.dims[3] : 4;
    if (bits != 4 && bits != 8) {
      call.failure().say("%s must have values of 4 or 8 bits and has %" PRId64,
                         call.name(inputs.values), bits);
    }
    values = {matrices, panels, blocks, bits, kPanel, kQuad};
    weights.format = bits == 8 ? DRL_FORMAT_INT8_BLOCK : DRL_FORMAT_INT4;
  }
  weights.values = call.values<uint8_t>(inputs.values, values, kRequired);
  weights.scales = call.values<float>(inputs.scales, {matrices, panels * kPanel}, kRequired);
  return weights;
}

// The rows of x [B, T, depth], with the weight of their norm where the node has one.
inline drl_rows read_rows(Call& call, const Tensor& x, size_t norm, float epsilon) {
  return {x.values<float>(), static_cast<size_t>(x.dims[0] * x.dims[1]),
          call.values<float>(norm, {x.dims[2]}), epsilon};
}

// Float weights in panels.
inline const float* read_panels(Call& call, size_t input, int64_t matrices, int64_t columns,
                                int64_t depth) {
  constexpr int64_t kColumns = kFloatPanelColumns;
  const int64_t panels = (columns + kColumns - 1) / kColumns;
  return call.values<float>(input, {matrices, panels, depth, kColumns}, kRequired);
}

}  // namespace drl::ort
