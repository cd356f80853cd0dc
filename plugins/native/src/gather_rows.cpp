// Rows of weights of 8 bits as floats: an embedding that shares a head's packed weights.
#include "packed_weights.h"
#include "parallel_for.h"

namespace drl {
namespace {

// Rows that one task fetches: each costs about a microsecond, since its numbers lie far apart.
constexpr size_t kRowsPerTask = 32;

void gather_row(const PackedWeights& weights, size_t row, float* y) {
  const size_t depth = weights.depth(), panel = row / kPanelColumns, column = row % kPanelColumns;
  const Panel own = weights.panel(0, panel);
  const uint8_t* values = own.values + column * kQuad;
  const float scale = weights.scales(0, panel)[column];
  const bool blocks = has_blocks(weights.format());
  for (size_t first = 0; first < depth; first += kBlock) {
    const float multiplier =
        blocks ? own.multipliers[first / kBlock * kPanelColumns + column] : 1.0f;
    const size_t last = smaller(first + kBlock, depth);
    for (size_t k = first; k < last; ++k) {
      const int32_t q = values[k / kQuad * kPanelColumns * kQuad + k % kQuad] - kInt8Bias;
      y[k] = static_cast<float>(q) * (multiplier * scale);
    }
  }
}

drl_status run(const drl_weights& given, const int64_t* ids, size_t count, float* y,
               const drl_execution& execution) {
  PackedWeights weights;
  const drl_status status = PackedWeights::open(given, &weights);
  if (status != DRL_OK) return status;
  if (weights.matrices() != 1 || weights.format() == DRL_FORMAT_INT4) return DRL_SHAPES_DIFFER;
  if (count == 0) return DRL_OK;
  if (ids == nullptr || y == nullptr) return DRL_BAD_ARGUMENT;
  for (size_t i = 0; i < count; ++i) {
    // A negative one is huge as an unsigned number.
    if (static_cast<uint64_t>(ids[i]) >= weights.columns()) return DRL_NO_SUCH_ROW;
  }
  parallel_for(execution, ceil_div(count, kRowsPerTask), [&](size_t task) {
    const size_t first = task * kRowsPerTask;
    const size_t last = smaller(first + kRowsPerTask, count);
    for (size_t i = first; i < last; ++i) {
      gather_row(weights, static_cast<size_t>(ids[i]), y + i * weights.depth());
    }
  });
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" drl_status drl_gather_rows(const drl_weights* weights, const int64_t* ids, size_t count,
                                      float* y, const drl_execution* execution) {
  if (weights == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*weights, ids, count, y, *execution);
}
