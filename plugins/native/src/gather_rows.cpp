// Rows of weights of 8 bits as floats: an embedding that shares a head's packed weights.
#include "packed_weights.h"

namespace drl {
namespace {

drl_status run(const drl_weights& given, const int64_t* ids, size_t count, float* y) {
  PackedWeights weights;
  const drl_status status = PackedWeights::open(given, &weights);
  if (status != DRL_OK) return status;
  if (weights.matrices() != 1 || weights.format() == DRL_FORMAT_INT4) return DRL_SHAPES_DIFFER;
  if (count == 0) return DRL_OK;
  if (ids == nullptr || y == nullptr) return DRL_BAD_ARGUMENT;
  const size_t depth = weights.depth();
  const bool blocks = has_blocks(weights.format());
  for (size_t i = 0; i < count; ++i, y += depth) {
    // A negative one is huge as an unsigned number.
    if (static_cast<uint64_t>(ids[i]) >= weights.columns()) return DRL_NO_SUCH_ROW;
    const size_t panel = static_cast<size_t>(ids[i]) / kPanelColumns;
    const size_t column = static_cast<size_t>(ids[i]) % kPanelColumns;
    const Panel own = weights.panel(0, panel);
    const uint8_t* values = own.values + column * kQuad;
    const float scale = weights.scales(0, panel)[column];
    for (size_t first = 0; first < depth; first += kBlock) {
      const float multiplier =
          blocks ? own.multipliers[first / kBlock * kPanelColumns + column] : 1.0f;
      const size_t last = first + kBlock < depth ? first + kBlock : depth;
      for (size_t k = first; k < last; ++k) {
        const int32_t q = values[k / kQuad * kPanelColumns * kQuad + k % kQuad] - kInt8Bias;
        y[k] = static_cast<float>(q) * (multiplier * scale);
      }
    }
  }
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" drl_status drl_gather_rows(const drl_weights* weights, const int64_t* ids, size_t count,
                                      float* y) {
  if (weights == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*weights, ids, count, y);
}
