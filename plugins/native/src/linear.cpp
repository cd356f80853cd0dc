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
      const size_t last = first + width < weights.panels() ? first + width : weights.panels();
      const size_t from = task / groups * kBlocksPerTask;
      const size_t to = from + kBlocksPerTask < blocks() ? from + kBlocksPerTask : blocks();
      for (size_t panel = first; panel < last; ++panel) {
        for (size_t index = from; index < to; ++index) multiply(panel, block(index));
      }
    });
  }

 private:
  void multiply(size_t panel, RowBlock block) const {
    alignas(64) float totals[2][kTileFloats];
    for (size_t matrix = 0; matrix < weights.matrices(); ++matrix) {
      rows.multiply(kernels, block, weights.panel(matrix, panel), totals[matrix]);
    }
    const size_t column = panel * kPanelColumns, columns = weights.columns_of(panel);
    const Dequantization how = dequantization(0, panel);
    const LinearOutputs::Destination whole = outputs.inside_one(column, columns);
    for (size_t i = 0; i < block.rows; ++i) {
      const size_t row = block.first + i, place = i * kPanelColumns;
      float buffer[kPanelColumns];
      float* y = whole.y == nullptr ? buffer : whole.y + row * whole.stride;
      if (gated()) {
        finish_gated(panel, how, totals[0] + place, totals[1] + place, rows.scale(row), y);
      } else {
        kernels.dequantize(totals[0] + place, rows.scale(row), how, y);
      }
      if (call.residual != nullptr) {
        const float* residual = call.residual + row * weights.columns() + column;
        kernels.accumulate(residual, 1.0f, columns, y);
      }
      if (whole.y == nullptr) outputs.split(row, column, columns, buffer);
    }
  }

  void finish_gated(size_t panel, const Dequantization& how, const float* gate_totals,
                    const float* up_totals, float scale, float* y) const {
    float gate[kPanelColumns], up[kPanelColumns];
    kernels.dequantize(gate_totals, scale, how, gate);
    kernels.dequantize(up_totals, scale, dequantization(1, panel), up);
    kernels.activate(call.activation, gate, up, how.columns, y);
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
