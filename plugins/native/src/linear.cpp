// y = residual + activation(x̂ · Wᵀ + bias), gated or not: quantise the rows, then multiply them
// with panels of weights.
#include "cpu_features.h"
#include "linear_outputs.h"
#include "quantized_rows.h"

namespace drl {
namespace {

// Blocks of rows that stay in the second-level cache while panels pass by.
constexpr size_t kBlocksPerTask = 8;
constexpr size_t kTileFloats = kMaxTileRows * kPanelColumns;

struct Linear {
  const drl_linear& call;
  const drl_execution& execution;
  const Kernels& kernels;
  PackedWeights weights;
  QuantizedRows rows;
  LinearOutputs outputs{call.outputs};

  bool gated() const { return weights.matrices() == 2; }
  size_t blocks() const { return ceil_div(call.rows.count, kernels.tile_rows); }
  RowBlock block(size_t index) const { return block_of(call.rows.count, kernels.tile_rows, index); }

  void run() {
    rows.quantize(kernels, call.rows, execution);
    const size_t chunks = ceil_div(blocks(), kBlocksPerTask);
    const size_t rows_per_chunk = ceil_div(call.rows.count, chunks);
    const size_t bytes = weights.panel_bytes() * weights.matrices();
    const size_t width = panels_per_task(weights.panels(), bytes, rows_per_chunk);
    const size_t groups = ceil_div(weights.panels(), width);
    parallel_for(execution, chunks * groups, [&](size_t task) {
      const size_t first = task % groups * width;
      const size_t last = smaller(first + width, weights.panels());
      const size_t from = task / groups * kBlocksPerTask;
      const size_t to = smaller(from + kBlocksPerTask, blocks());
      for (size_t panel = first; panel < last; ++panel) {
        for (size_t index = from; index < to; ++index) multiply(panel, block(index));
      }
    });
  }

 private:
  void multiply(size_t panel, RowBlock block) const {
    alignas(64) float totals[2][kTileFloats];
    if (call.residual != nullptr) fetch_residual(panel, block);
    for (size_t matrix = 0; matrix < weights.matrices(); ++matrix) {
      rows.multiply(kernels, block, weights.panel(matrix, panel), totals[matrix]);
    }
    const size_t column = panel * kPanelColumns, columns = weights.columns_of(panel);
    const LinearOutputs::Destination whole = outputs.inside_one(column, columns);
    float* y = whole.y == nullptr ? totals[0] : whole.y + block.first * whole.stride;
    const size_t stride = whole.y == nullptr ? kPanelColumns : whole.stride;
    // Where there is one, the output is single, so its rows lie as far apart as those of y.
    const float* residual = call.residual == nullptr
                                ? nullptr
                                : call.residual + block.first * weights.columns() + column;
    if (gated()) {
      finish_gated(panel, block, totals, residual, y, stride);
    } else {
      finish(0, panel, block, totals[0], residual, y, stride);
    }
    for (size_t i = 0; whole.y == nullptr && i < block.rows; ++i) {
      outputs.split(block.first + i, column, columns, y + i * stride);
    }
  }

  // Asks for what is added at the end: its rows lie far apart, and products take a while. Inlined,
  // since GCC drops calls of functions that only prefetch.
  [[gnu::always_inline]] void fetch_residual(size_t panel, RowBlock block) const {
    constexpr size_t kLineFloats = 16;
    const size_t column = panel * kPanelColumns, columns = weights.columns_of(panel);
    for (size_t row = block.first; row < block.first + block.rows; ++row) {
      const float* residual = call.residual + row * weights.columns() + column;
      for (size_t i = 0; i < columns; i += kLineFloats) __builtin_prefetch(residual + i);
    }
  }

  void finish(size_t matrix, size_t panel, RowBlock block, const float* totals,
              const float* residual, float* y, size_t stride) const {
    kernels.dequantize(totals, rows.scales(block.first), block.rows, dequantization(matrix, panel),
                       residual, y, stride);
  }

  void finish_gated(size_t panel, RowBlock block, float (&totals)[2][kTileFloats],
                    const float* residual, float* y, size_t stride) const {
    for (size_t matrix = 0; matrix < 2; ++matrix) {
      finish(matrix, panel, block, totals[matrix], nullptr, totals[matrix], kPanelColumns);
    }
    const size_t columns = weights.columns_of(panel);
    for (size_t i = 0; i < block.rows; ++i) {
      const size_t place = i * kPanelColumns;
      float* out = y + i * stride;
      kernels.activate(call.activation, totals[0] + place, totals[1] + place, columns, out);
      if (residual != nullptr) kernels.accumulate(residual + i * stride, 1.0f, columns, out);
    }
  }

  Dequantization dequantization(size_t matrix, size_t panel) const {
    const size_t column = matrix * weights.columns() + panel * kPanelColumns;
    return {weights.scales(matrix, panel), call.bias == nullptr ? nullptr : call.bias + column,
            1.0f, gated() ? DRL_ACTIVATION_NONE : call.activation, weights.columns_of(panel)};
  }
};

drl_status check(const drl_linear& call, const PackedWeights& weights) {
  if (weights.matrices() > 2) return DRL_SHAPES_DIFFER;
  if (call.rows.x == nullptr || !exists(call.activation)) return DRL_BAD_ARGUMENT;
  return LinearOutputs(call.outputs).check(weights.columns(), call.residual);
}

drl_status run(const drl_linear& call, drl_workspace workspace, const drl_execution& execution) {
  const Kernels* kernels = kernels_for(execution.isa);
  if (kernels == nullptr) return DRL_ISA_UNAVAILABLE;
  PackedWeights weights;
  drl_status status = PackedWeights::open(call.weights, &weights);
  if (status != DRL_OK || call.rows.count == 0) return status;
  status = check(call, weights);
  if (status != DRL_OK) return status;
  if (workspace.data == nullptr || workspace.bytes < drl_linear_workspace_bytes(&call)) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  Carver carver(workspace);
  const QuantizedRows rows(carver, weights.format(), call.rows.count, weights.depth());
  Linear{call, execution, *kernels, weights, rows}.run();
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_linear_workspace_bytes(const drl_linear* linear) {
  drl::Carver carver;
  const drl_weights& weights = linear->weights;
  drl::QuantizedRows(carver, weights.format, linear->rows.count, weights.depth);
  return carver.bytes();
}

extern "C" drl_status drl_linear_run(const drl_linear* linear, drl_workspace workspace,
                                     const drl_execution* execution) {
  if (linear == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*linear, workspace, *execution);
}
