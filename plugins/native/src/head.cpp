// A language model's head: logits, the k largest of every row, and the logarithm of the sum of
// their exponentials, in one pass over the weights.
#include "cpu_features.h"
#include "quantized_rows.h"
#include "ranked_logits.h"

namespace drl {
namespace {

constexpr size_t kChunkPanels = kChunkColumns / kPanelColumns;

RankedRows ranked_rows(const drl_head& call) {
  return {call.rows.count, call.weights.columns, call.k, call.values, call.ids, call.normalisers};
}

struct Head {
  const drl_head& call;
  const drl_execution& execution;
  const Kernels& kernels;
  PackedWeights weights;
  QuantizedRows rows;
  RankedLogits ranked;

  Head(Carver& carver, const drl_head& of, const drl_execution& how, const Kernels& with,
       PackedWeights multiplied)
      : call(of),
        execution(how),
        kernels(with),
        weights(multiplied),
        rows(carver, of.weights.format, of.rows.count, of.weights.depth),
        ranked(carver, ranked_rows(of)) {}

  void run() {
    rows.quantize(kernels, call.rows, execution);
    const size_t width = ceil_div(
        panels_per_task(weights.panels(), weights.panel_bytes(), call.rows.count), kChunkPanels);
    const size_t groups = ceil_div(ranked.chunks(), width);
    ranked.start(groups);
    parallel_for(execution, groups, [&](size_t group) {
      const size_t first = group * width;
      const size_t last = first + width < ranked.chunks() ? first + width : ranked.chunks();
      for (size_t chunk = first; chunk < last; ++chunk) one_chunk(group, chunk);
    });
    ranked.finish(groups);
  }

 private:
  void one_chunk(size_t group, size_t chunk) const {
    const Columns columns = ranked.chunk(chunk);
    const size_t blocks = ceil_div(call.rows.count, kernels.tile_rows);
    alignas(64) float buffer[kMaxTileRows * kChunkColumns];
    for (size_t index = 0; index < blocks; ++index) {
      const RowBlock block = block_of(call.rows.count, kernels.tile_rows, index);
      const bool written = call.logits != nullptr;
      const size_t place = block.first * weights.columns() + columns.first;
      float* logits = written ? call.logits + place : buffer;
      const size_t stride = written ? weights.columns() : kChunkColumns;
      for (size_t i = 0; i * kPanelColumns < columns.count; ++i) {
        multiply(chunk * kChunkPanels + i, block, stride, logits + i * kPanelColumns);
      }
      for (size_t i = 0; i < block.rows; ++i) {
        ranked.add(kernels, group, block.first + i, chunk, logits + i * stride);
      }
    }
  }

  // Writes the logits of a panel, rows `stride` apart.
  void multiply(size_t panel, RowBlock block, size_t stride, float* logits) const {
    alignas(64) float totals[kMaxTileRows * kPanelColumns];
    const float* bias = call.bias == nullptr ? nullptr : call.bias + panel * kPanelColumns;
    const Dequantization how{weights.scales(0, panel), bias, call.factor, DRL_ACTIVATION_NONE,
                             weights.columns_of(panel)};
    rows.multiply(kernels, block, weights.panel(0, panel), totals);
    kernels.dequantize(totals, rows.scales(block.first), block.rows, how, nullptr, logits, stride);
  }
};

drl_status check(const drl_head& call, const PackedWeights& weights) {
  if (weights.matrices() != 1) return DRL_SHAPES_DIFFER;
  if (call.k > weights.columns() || weights.columns() > INT32_MAX) return DRL_BAD_ARGUMENT;
  if (call.rows.count == 0) return DRL_OK;
  if (call.rows.x == nullptr || call.normalisers == nullptr) return DRL_BAD_ARGUMENT;
  const bool ranks = call.values != nullptr && call.ids != nullptr;
  return call.k > 0 && !ranks ? DRL_BAD_ARGUMENT : DRL_OK;
}

drl_status run(const drl_head& call, drl_workspace workspace, const drl_execution& execution) {
  const Kernels* kernels = kernels_for(execution.isa);
  if (kernels == nullptr) return DRL_ISA_UNAVAILABLE;
  PackedWeights weights;
  drl_status status = PackedWeights::open(call.weights, &weights);
  if (status == DRL_OK) status = check(call, weights);
  if (status != DRL_OK || call.rows.count == 0) return status;
  if (workspace.data == nullptr || workspace.bytes < drl_head_workspace_bytes(&call)) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  Carver carver(workspace);
  Head(carver, call, execution, *kernels, weights).run();
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_head_workspace_bytes(const drl_head* head) {
  drl::Carver carver;
  drl::QuantizedRows(carver, head->weights.format, head->rows.count, head->weights.depth);
  drl::RankedLogits(carver, drl::ranked_rows(*head));
  return carver.bytes();
}

extern "C" drl_status drl_head_run(const drl_head* head, drl_workspace workspace,
                                   const drl_execution* execution) {
  if (head == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*head, workspace, *execution);
}
