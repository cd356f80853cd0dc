// The k largest values of every row of x · Wᵀ + bias, without writing the others: a language
// model's head when only the likeliest tokens matter.
#include <new>

#include "best_k.h"
#include "cpu_features.h"
#include "parallel_for.h"
#include "quantized_rows.h"
#include "task_size.h"

namespace drl {
namespace {

// The most tasks that panels_per_task makes, and so the lists of candidates of a row.
size_t most_groups(size_t panels) { return panels < kMostTasks ? panels : kMostTasks; }

struct Arrays {
  QuantizedRows rows;
  float* values;  // [groups][rows][k], the candidates of every group of panels
  int32_t* ids;
  BestK* lists;  // [groups][rows]
};

Arrays carve(Carver& carver, const drl_packed_shape& shape, size_t rows, size_t k) {
  const size_t lists = most_groups(ceil_div(shape.columns, kPanelColumns)) * rows;
  return {QuantizedRows(carver, rows, shape.depth), carver.take<float>(lists * k),
          carver.take<int32_t>(lists * k), carver.take<BestK>(lists)};
}

struct TopK {
  const drl_top_k& call;
  const drl_execution& execution;
  const Kernels& kernels;
  PackedWeights weights;
  Arrays arrays;

  void run() {
    const size_t depth = weights.shape().depth;
    const size_t blocks = ceil_div(call.rows, kernels.tile_rows);
    for (size_t index = 0; index < blocks; ++index) {
      arrays.rows.quantize(kernels, block_of(call.rows, kernels.tile_rows, index),
                           [&](size_t row) { return call.x + row * depth; });
    }
    const size_t width = panels_per_task(weights.panels(), weights.panel_bytes(), call.rows);
    const size_t groups = ceil_div(weights.panels(), width);
    parallel_for(execution, groups, [&](size_t group) {
      for (size_t row = 0; row < call.rows; ++row) {
        const size_t list = group * call.rows + row;
        new (arrays.lists + list)
            BestK(call.k, arrays.values + list * call.k, arrays.ids + list * call.k);
      }
      const size_t first = group * width;
      const size_t last = first + width < weights.panels() ? first + width : weights.panels();
      for (size_t panel = first; panel < last; ++panel) {
        for (size_t index = 0; index < blocks; ++index) {
          offer(group, panel, block_of(call.rows, kernels.tile_rows, index));
        }
      }
    });
    for (size_t row = 0; row < call.rows; ++row) merge(row, groups, width);
  }

  void offer(size_t group, size_t panel, RowBlock block) const {
    const size_t column = panel * kPanelColumns;
    const Dequantization how{weights.scales(0, panel),
                             call.bias == nullptr ? nullptr : call.bias + column,
                             DRL_ACTIVATION_NONE, weights.columns_of(panel)};
    arrays.rows.multiply(kernels, block, weights.panel(0, panel),
                         [&](size_t row, const int32_t* sums, float scale) {
                           float values[kPanelColumns];
                           kernels.dequantize(sums, scale, how, values);
                           BestK& best = arrays.lists[group * call.rows + row];
                           if (best.refuses(values, how.columns)) return;
                           for (size_t i = 0; i < how.columns; ++i) {
                             best.offer(values[i], static_cast<int32_t>(column + i));
                           }
                         });
  }

  // Groups come in the order of their columns, so equal values keep theirs.
  void merge(size_t row, size_t groups, size_t width) const {
    BestK best(call.k, call.values + row * call.k, call.ids + row * call.k);
    for (size_t group = 0; group < groups; ++group) {
      const size_t columns = weights.shape().columns - group * width * kPanelColumns;
      const size_t own = columns < width * kPanelColumns ? columns : width * kPanelColumns;
      const size_t list = (group * call.rows + row) * call.k;
      for (size_t i = 0; i < call.k && i < own; ++i) {
        best.offer(arrays.values[list + i], arrays.ids[list + i]);
      }
    }
  }
};

drl_status run(const drl_top_k& call, drl_workspace workspace, const drl_execution& execution) {
  const Kernels* kernels = kernels_for(execution.isa);
  if (kernels == nullptr) return DRL_ISA_UNAVAILABLE;
  PackedWeights weights;
  const drl_status status = PackedWeights::open(call.weight, &weights);
  if (status != DRL_OK) return status;
  if (weights.shape().matrices != 1) return DRL_SHAPES_DIFFER;
  if (call.k == 0 || call.k > weights.shape().columns) return DRL_BAD_ARGUMENT;
  if (call.rows == 0) return DRL_OK;
  if (call.x == nullptr || call.values == nullptr || call.ids == nullptr) return DRL_BAD_ARGUMENT;
  if (workspace.data == nullptr ||
      workspace.bytes < drl_top_k_workspace_bytes(&weights.shape(), call.rows, call.k)) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  Carver carver(workspace);
  TopK{call, execution, *kernels, weights, carve(carver, weights.shape(), call.rows, call.k)}.run();
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_top_k_workspace_bytes(const drl_packed_shape* shape, size_t rows, size_t k) {
  drl::Carver carver;
  drl::carve(carver, *shape, rows, k);
  return carver.bytes();
}

extern "C" drl_status drl_top_k_int8(const drl_top_k* head, drl_workspace workspace,
                                     const drl_execution* execution) {
  if (head == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*head, workspace, *execution);
}
