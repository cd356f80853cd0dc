// A language model's head with float weights: logits, the k largest of every row, and the logarithm
// of the sum of their exponentials, in one pass over the weights.
#include "attention_kernels.h"
#include "cpu_features.h"
#include "float_weights.h"
#include "parallel_for.h"
#include "quantized_rows.h"
#include "ranked_logits.h"

namespace drl {
namespace {

// Rows of so many bytes stay in the fastest cache while the columns of a chunk pass.
constexpr size_t kRowBytes = 16 * 1024;

RankedRows ranked_rows(const drl_float_head& call) {
  return {call.rows, call.columns, call.k, call.values, call.ids, call.normalisers};
}

struct FloatHead {
  const drl_float_head& call;
  const drl_execution& execution;
  const Kernels& kernels;
  const AttentionKernels& products;
  RankedLogits ranked;

  void run() const {
    const size_t bytes = kChunkColumns * call.depth * sizeof(float);
    const size_t width = panels_per_task(ranked.chunks(), bytes, call.rows);
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
  size_t rows_together() const {
    const size_t fit = kRowBytes / (call.depth * sizeof(float));
    const size_t least = kMostHeadRows / 2;
    return fit < least ? least : fit < kMostHeadRows ? fit : kMostHeadRows;
  }

  void one_chunk(size_t group, size_t chunk) const {
    const Columns place = ranked.chunk(chunk);
    const HeadColumns columns{call.weight + place.first * call.depth,
                              call.bias == nullptr ? nullptr : call.bias + place.first,
                              call.factor, call.depth, place.count};
    alignas(64) float buffer[kMostHeadRows * kChunkColumns];
    const size_t together = rows_together();
    for (size_t index = 0; index < ceil_div(call.rows, together); ++index) {
      const RowBlock block = block_of(call.rows, together, index);
      const bool written = call.logits != nullptr;
      float* logits = written ? call.logits + block.first * call.columns + place.first : buffer;
      const size_t stride = written ? call.columns : kChunkColumns;
      products.head(columns, call.x + block.first * call.depth, block.rows, logits, stride);
      for (size_t i = 0; i < block.rows; ++i) {
        ranked.add(kernels, group, block.first + i, chunk, logits + i * stride);
      }
    }
  }
};

drl_status check(const drl_float_head& call) {
  if (call.depth == 0 || call.columns == 0) return DRL_BAD_ARGUMENT;
  if (call.k > call.columns || call.columns > INT32_MAX) return DRL_BAD_ARGUMENT;
  if (call.rows == 0) return DRL_OK;
  if (call.x == nullptr || call.weight == nullptr || !aligned(call.weight)) return DRL_BAD_ARGUMENT;
  if (call.normalisers == nullptr) return DRL_BAD_ARGUMENT;
  const bool ranks = call.values != nullptr && call.ids != nullptr;
  return call.k > 0 && !ranks ? DRL_BAD_ARGUMENT : DRL_OK;
}

drl_status run(const drl_float_head& call, drl_workspace workspace,
               const drl_execution& execution) {
  const Kernels* kernels = kernels_for(execution.isa);
  const AttentionKernels* products = attention_kernels_for(execution.isa);
  if (kernels == nullptr || products == nullptr) return DRL_ISA_UNAVAILABLE;
  const drl_status status = check(call);
  if (status != DRL_OK || call.rows == 0) return status;
  if (workspace.data == nullptr || workspace.bytes < drl_float_head_workspace_bytes(&call)) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  Carver carver(workspace);
  FloatHead{call, execution, *kernels, *products, RankedLogits(carver, ranked_rows(call))}.run();
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_float_head_workspace_bytes(const drl_float_head* head) {
  drl::Carver carver;
  drl::RankedLogits(carver, drl::ranked_rows(*head));
  return carver.bytes();
}

extern "C" drl_status drl_float_head_run(const drl_float_head* head, drl_workspace workspace,
                                         const drl_execution* execution) {
  if (head == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*head, workspace, *execution);
}
