// y = residual + activation(x̂ · Wᵀ + bias) with float weights in panels, gated or not.
#include "attention_kernels.h"
#include "cpu_features.h"
#include "float_weights.h"
#include "linear_outputs.h"
#include "parallel_for.h"
#include "row_blocks.h"
#include "task_size.h"
#include "workspace.h"

namespace drl {
namespace {

// Rows that pass a panel together: they stay in the second cache, and so does the panel.
constexpr size_t kMostRows = 96;

struct FloatLinear {
  const drl_float_linear& call;
  const drl_execution& execution;
  const Kernels& kernels;
  const AttentionKernels& products;
  float* normed;  // [rows, depth], or null: rows are read as they are
  LinearOutputs outputs{call.outputs};

  void run() const {
    if (normed != nullptr) normalize();
    const size_t blocks = ceil_div(call.rows.count, kMostRows);
    const size_t rows = ceil_div(call.rows.count, blocks);
    const size_t bytes = call.depth * kFloatPanelColumns * sizeof(float) * call.matrices;
    const size_t width = panels_per_task(panels(), bytes, rows);
    const size_t groups = ceil_div(panels(), width);
    parallel_for(execution, blocks * groups, [&](size_t task) {
      const RowBlock block = block_of(call.rows.count, kMostRows, task / groups);
      const size_t first = task % groups * width;
      const size_t last = smaller(first + width, panels());
      for (size_t panel = first; panel < last; ++panel) multiply(panel, block);
    });
  }

 private:
  size_t panels() const { return ceil_div(call.columns, kFloatPanelColumns); }

  void normalize() const {
    const drl_execution serial{execution.isa, nullptr, nullptr};
    const bool few = call.rows.count * call.depth < kSerialValues;
    parallel_for(few ? serial : execution, call.rows.count, [&](size_t row) {
      const RowSource source{call.rows.x + row * call.depth, call.rows.norm, call.rows.epsilon,
                             call.depth};
      kernels.normalize_row(source, normed + row * call.depth);
    });
  }

  const float* weights(size_t matrix, size_t panel) const {
    return call.weights + (matrix * panels() + panel) * call.depth * kFloatPanelColumns;
  }

  void multiply(size_t panel, RowBlock block) const {
    alignas(64) float totals[2][kMostRows * kFloatPanelColumns];
    const float* x = (normed == nullptr ? call.rows.x : normed) + block.first * call.depth;
    for (size_t matrix = 0; matrix < call.matrices; ++matrix) {
      const bool last = matrix + 1 == call.matrices;
      const float* next = last ? (panel + 1 < panels() ? weights(0, panel + 1) : nullptr)
                               : weights(matrix + 1, panel);
      const MatrixColumns columns{weights(matrix, panel), kFloatPanelColumns, call.depth,
                                  kFloatPanelColumns, next};
      products.multiply(columns, {x, call.depth, block.rows}, totals[matrix], kFloatPanelColumns);
    }
    const size_t column = panel * kFloatPanelColumns;
    const size_t left = call.columns - column;
    const size_t columns = left < kFloatPanelColumns ? left : kFloatPanelColumns;
    const LinearOutputs::Destination whole = outputs.inside_one(column, columns);
    for (size_t i = 0; i < block.rows; ++i) {
      const size_t row = block.first + i, place = i * kFloatPanelColumns;
      float* sums = totals[0] + place;
      float* y = whole.y == nullptr ? sums : whole.y + row * whole.stride;
      finish(column, columns, sums, totals[1] + place, y);
      if (call.residual != nullptr) {
        kernels.accumulate(call.residual + row * call.columns + column, 1.0f, columns, y);
      }
      if (whole.y == nullptr) outputs.split(row, column, columns, y);
    }
  }

  // What becomes of the products with the first matrix, and the second if there is one.
  void finish(size_t column, size_t columns, float* sums, float* opened, float* y) const {
    const bool gated = call.matrices == 2;
    add_bias(column, columns, sums);
    if (gated) add_bias(call.columns + column, columns, opened);
    if (gated || call.activation != DRL_ACTIVATION_NONE) {
      kernels.activate(call.activation, sums, gated ? opened : nullptr, columns, y);
    } else if (y != sums) {
      std::memcpy(y, sums, columns * sizeof(float));
    }
  }

  void add_bias(size_t place, size_t columns, float* y) const {
    if (call.bias != nullptr) kernels.accumulate(call.bias + place, 1.0f, columns, y);
  }
};

float* carve(Carver& carver, const drl_float_linear& call) {
  return call.rows.norm == nullptr ? nullptr : carver.take<float>(call.rows.count * call.depth);
}

drl_status check(const drl_float_linear& call) {
  if (call.matrices < 1 || call.matrices > 2) return DRL_SHAPES_DIFFER;
  if (call.columns == 0 || call.depth == 0) return DRL_BAD_ARGUMENT;
  if (call.rows.count == 0) return DRL_OK;
  if (call.rows.x == nullptr || !exists(call.activation)) return DRL_BAD_ARGUMENT;
  if (call.weights == nullptr || !aligned(call.weights)) return DRL_BAD_ARGUMENT;
  return LinearOutputs(call.outputs).check(call.columns, call.residual);
}

drl_status run(const drl_float_linear& call, drl_workspace workspace,
               const drl_execution& execution) {
  const Kernels* kernels = kernels_for(execution.isa);
  const AttentionKernels* products = attention_kernels_for(execution.isa);
  if (kernels == nullptr || products == nullptr) return DRL_ISA_UNAVAILABLE;
  const drl_status status = check(call);
  if (status != DRL_OK || call.rows.count == 0) return status;
  if (call.rows.norm != nullptr &&
      (workspace.data == nullptr || workspace.bytes < drl_float_linear_workspace_bytes(&call))) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  Carver carver(workspace);
  FloatLinear{call, execution, *kernels, *products, carve(carver, call)}.run();
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_float_linear_workspace_bytes(const drl_float_linear* linear) {
  drl::Carver carver;
  drl::carve(carver, *linear);
  return carver.bytes();
}

extern "C" drl_status drl_float_linear_run(const drl_float_linear* linear, drl_workspace workspace,
                                           const drl_execution* execution) {
  if (linear == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*linear, workspace, *execution);
}
