// y = activation(x · Wᵀ + bias): quantise the rows, then multiply them with panels of weights.
#include "cpu_features.h"
#include "parallel_for.h"
#include "quantized_rows.h"
#include "task_size.h"

namespace drl {
namespace {

// Blocks of rows that stay in the second-level cache while panels pass by.
constexpr size_t kBlocksPerTask = 8;

struct Linear {
  const drl_linear& call;
  const drl_execution& execution;
  const Kernels& kernels;
  PackedWeights weights;
  QuantizedRows rows;

  size_t blocks() const { return ceil_div(call.rows, kernels.tile_rows); }
  RowBlock block(size_t index) const { return block_of(call.rows, kernels.tile_rows, index); }

  void quantize() {
    const size_t depth = weights.shape().depth;
    const auto one_block = [&](size_t index) {
      rows.quantize(kernels, block(index), [&](size_t row) { return call.x + row * depth; });
    };
    if (call.rows * depth < kSerialValues) {
      for (size_t index = 0; index < blocks(); ++index) one_block(index);
    } else {
      parallel_for(execution, blocks(), one_block);
    }
  }

  void multiply() const {
    const size_t chunks = ceil_div(blocks(), kBlocksPerTask);
    const size_t rows_per_chunk = ceil_div(call.rows, chunks);
    const size_t width = panels_per_task(weights.panels(), weights.panel_bytes(), rows_per_chunk);
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

  void multiply(size_t panel, RowBlock block) const {
    const size_t column = panel * kPanelColumns;
    const Dequantization how{weights.scales(0, panel),
                             call.bias == nullptr ? nullptr : call.bias + column, call.activation,
                             weights.columns_of(panel)};
    rows.multiply(kernels, block, weights.panel(0, panel),
                  [&](size_t row, const int32_t* sums, float scale) {
                    float* y = call.y + row * weights.shape().columns + column;
                    kernels.dequantize(sums, scale, how, y);
                  });
  }
};

drl_status run(const drl_linear& call, drl_workspace workspace, const drl_execution& execution) {
  const Kernels* kernels = kernels_for(execution.isa);
  if (kernels == nullptr) return DRL_ISA_UNAVAILABLE;
  PackedWeights weights;
  const drl_status status = PackedWeights::open(call.weight, &weights);
  if (status != DRL_OK) return status;
  if (weights.shape().matrices != 1) return DRL_SHAPES_DIFFER;
  if (call.rows == 0) return DRL_OK;
  if (call.x == nullptr || call.y == nullptr) return DRL_BAD_ARGUMENT;
  if (workspace.data == nullptr ||
      workspace.bytes < drl_linear_workspace_bytes(&weights.shape(), call.rows)) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  Carver carver(workspace);
  Linear linear{call, execution, *kernels, weights,
                QuantizedRows(carver, call.rows, weights.shape().depth)};
  linear.quantize();
  linear.multiply();
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_linear_workspace_bytes(const drl_packed_shape* shape, size_t rows) {
  drl::Carver carver;
  drl::QuantizedRows(carver, rows, shape->depth);
  return carver.bytes();
}

extern "C" drl_status drl_linear_int8(const drl_linear* linear, drl_workspace workspace,
                                      const drl_execution* execution) {
  if (linear == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*linear, workspace, *execution);
}
