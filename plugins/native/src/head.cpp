// A language model's head: logits, the k largest of every row, and the logarithm of the sum of
// their exponentials, in one pass over the weights.
#include <atomic>
#include <cmath>
#include <new>

#include "best_k.h"
#include "cpu_features.h"
#include "exponential.h"
#include "quantized_rows.h"

namespace drl {
namespace {

// Panels whose logits are looked at together. It decides the order of the sums, so it is the same
// however many threads there are.
constexpr size_t kChunkColumns = kSumColumns;
constexpr size_t kChunkPanels = kChunkColumns / kPanelColumns;

size_t chunks_of(size_t columns) { return ceil_div(columns, kChunkColumns); }
// The most tasks there are, and so the lists of candidates of a row.
size_t most_groups(size_t columns) {
  return chunks_of(columns) < kMostTasks ? chunks_of(columns) : kMostTasks;
}

struct Arrays {
  QuantizedRows rows;
  ExponentialSum* sums;  // [rows][chunks]
  float* values;         // [groups][rows][k], the candidates of every group of chunks
  int32_t* ids;
  BestK* lists;              // [groups][rows]
  std::atomic<float>* bars;  // [rows], a number that k others have reached, or NaN
};

Arrays carve(Carver& carver, const drl_head& call) {
  const drl_weights& weights = call.weights;
  const size_t rows = call.rows.count;
  const size_t lists = call.k == 0 ? 0 : most_groups(weights.columns) * rows;
  return {QuantizedRows(carver, weights.format, rows, weights.depth),
          carver.take<ExponentialSum>(rows * chunks_of(weights.columns)),
          carver.take<float>(lists * call.k),
          carver.take<int32_t>(lists * call.k),
          carver.take<BestK>(lists),
          carver.take<std::atomic<float>>(rows)};
}

struct Head {
  const drl_head& call;
  const drl_execution& execution;
  const Kernels& kernels;
  PackedWeights weights;
  Arrays arrays;

  void run() {
    arrays.rows.quantize(kernels, call.rows, execution);
    for (size_t row = 0; call.k > 0 && row < call.rows.count; ++row) {
      new (arrays.bars + row) std::atomic<float>(NAN);
    }
    const size_t width = ceil_div(
        panels_per_task(weights.panels(), weights.panel_bytes(), call.rows.count), kChunkPanels);
    const size_t groups = ceil_div(chunks(), width);
    // Before the tasks: a caller's threads may fail to run some of them.
    for (size_t group = 0; group < groups; ++group) start_lists(group);
    parallel_for(execution, groups, [&](size_t group) {
      const size_t first = group * width;
      const size_t last = first + width < chunks() ? first + width : chunks();
      for (size_t chunk = first; chunk < last; ++chunk) one_chunk(group, chunk);
    });
    for (size_t row = 0; row < call.rows.count; ++row) finish(row, groups);
  }

 private:
  size_t chunks() const { return chunks_of(weights.columns()); }

  BestK& list(size_t group, size_t row) const {
    return arrays.lists[group * call.rows.count + row];
  }

  void start_lists(size_t group) const {
    for (size_t row = 0; call.k > 0 && row < call.rows.count; ++row) {
      const size_t place = (group * call.rows.count + row) * call.k;
      new (&list(group, row)) BestK(call.k, arrays.values + place, arrays.ids + place);
    }
  }

  void one_chunk(size_t group, size_t chunk) const {
    const size_t column = chunk * kChunkColumns, left = weights.columns() - column;
    const size_t columns = left < kChunkColumns ? left : kChunkColumns;
    const size_t blocks = ceil_div(call.rows.count, kernels.tile_rows);
    alignas(64) float buffer[kMaxTileRows * kChunkColumns];
    for (size_t index = 0; index < blocks; ++index) {
      const RowBlock block = block_of(call.rows.count, kernels.tile_rows, index);
      const bool written = call.logits != nullptr;
      float* logits = written ? call.logits + block.first * weights.columns() + column : buffer;
      const size_t stride = written ? weights.columns() : kChunkColumns;
      for (size_t i = 0; i * kPanelColumns < columns; ++i) {
        multiply(chunk * kChunkPanels + i, block, stride, logits + i * kPanelColumns);
      }
      for (size_t i = 0; i < block.rows; ++i) {
        const size_t row = block.first + i;
        const ExponentialSum sum = kernels.sum_exponentials(logits + i * stride, columns);
        arrays.sums[row * chunks() + chunk] = sum;
        if (call.k > 0) offer(list(group, row), row, sum.max, logits + i * stride, column, columns);
      }
    }
  }

  // Writes the logits of a panel, rows `stride` apart.
  void multiply(size_t panel, RowBlock block, size_t stride, float* logits) const {
    alignas(64) float totals[kMaxTileRows * kPanelColumns];
    const float* bias = call.bias == nullptr ? nullptr : call.bias + panel * kPanelColumns;
    const Dequantization how{weights.scales(0, panel), bias, call.factor, DRL_ACTIVATION_NONE,
                             weights.columns_of(panel)};
    arrays.rows.multiply(kernels, block, weights.panel(0, panel), totals);
    for (size_t i = 0; i < block.rows; ++i) {
      kernels.dequantize(totals + i * kPanelColumns, arrays.rows.scale(block.first + i), how,
                         logits + i * stride);
    }
  }

  // The bar spares a group the search among what other groups have beaten already. Which groups
  // come first is left to the threads, and changes only how much is spared.
  void offer(BestK& best, size_t row, float largest, const float* logits, size_t column,
             size_t columns) const {
    std::atomic<float>& bar = arrays.bars[row];
    const float reached = bar.load(std::memory_order_relaxed);
    if (largest < reached || best.refuses(largest)) return;
    for (size_t i = 0; i < columns; ++i) {
      if (!(logits[i] < reached)) best.offer(logits[i], static_cast<int32_t>(column + i));
    }
    if (best.full() && !(best.worst() <= reached)) {
      bar.store(best.worst(), std::memory_order_relaxed);
    }
  }

  // Groups come in the order of their columns, so equal values keep theirs.
  void finish(size_t row, size_t groups) const {
    if (call.k > 0) {
      BestK best(call.k, call.values + row * call.k, call.ids + row * call.k);
      for (size_t group = 0; group < groups; ++group) best.offer_all(list(group, row));
    }
    call.normalisers[row] = normaliser(arrays.sums + row * chunks());
  }

  // log Σ exp, from the sums of all chunks in order.
  float normaliser(const ExponentialSum* sums) const {
    float largest = -INFINITY;
    bool nan = false;
    for (size_t i = 0; i < chunks(); ++i) {
      largest = sums[i].max > largest ? sums[i].max : largest;
      nan = nan || sums[i].sum != sums[i].sum;
    }
    if (nan) return NAN;
    if (std::isinf(largest)) return largest;
    double total = 0.0;
    for (size_t i = 0; i < chunks(); ++i) {
      total += static_cast<double>(sums[i].sum) * exponential(sums[i].max - largest);
    }
    return static_cast<float>(largest + std::log(total));
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
  Head{call, execution, *kernels, weights, carve(carver, call)}.run();
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_head_workspace_bytes(const drl_head* head) {
  drl::Carver carver;
  drl::carve(carver, *head);
  return carver.bytes();
}

extern "C" drl_status drl_head_run(const drl_head* head, drl_workspace workspace,
                                   const drl_execution* execution) {
  if (head == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*head, workspace, *execution);
}
