// Causal self-attention of new tokens over a cache of keys and values, which it extends in place.
//
// Written once for caches of float and of int8: a Call is drl_cached_attention or
// drl_quantized_cached_attention.
#include <cstring>
#include <type_traits>

#include "attention.h"

namespace drl {
namespace {

template <class Call>
using ElementOf = std::remove_pointer_t<decltype(Call::keys)>;

template <class Call>
size_t row_width_of(const Call& call) {
  return row_width<ElementOf<Call>>(call.width);
}

template <class Call>
AttentionPlan plan_of(const Call& call) {
  return {call.rows * call.kv_heads, call.tokens * (call.heads / call.kv_heads), call.slots,
          row_width_of(call) * sizeof(ElementOf<Call>)};
}

void store(const AttentionKernels&, const float* x, size_t width, float* row) {
  std::memcpy(row, x, width * sizeof(float));
}

void store(const AttentionKernels& kernels, const float* x, size_t width, int8_t* row) {
  kernels.quantize_state(x, width, row);
}

template <class Call>
struct CachedAttention {
  const Call& call;
  const AttentionKernels& kernels;
  AttentionPlan plan;

  // The new keys and values of a key head, to their slots.
  void extend(size_t key_head) const {
    const size_t row = key_head / call.kv_heads;
    const size_t first = static_cast<size_t>(call.lengths[row]);
    const size_t width = row_width_of(call);
    for (size_t token = 0; token < call.tokens; ++token) {
      const size_t from = (row * call.tokens + token) * call.kv_heads + key_head % call.kv_heads;
      const size_t to = key_head * call.capacity + first + token;
      store(kernels, call.k + from * call.width, call.width, call.keys + to * width);
      store(kernels, call.v + from * call.width, call.width, call.values + to * width);
    }
  }

  void attend(const QueryGroup& group, float* scores) const {
    const size_t row = group.head / call.kv_heads;
    const size_t shared = call.heads / call.kv_heads;
    AttentionQuery queries[kMostQueries];
    for (size_t i = 0; i < group.count; ++i) {
      const size_t token = (group.first + i) / shared;
      const size_t head = group.head % call.kv_heads * shared + (group.first + i) % shared;
      const size_t place = ((row * call.tokens + token) * call.heads + head) * call.width;
      queries[i] = {call.q + place, bias_of(row, head, token), call.y + place,
                    static_cast<size_t>(call.lengths[row]) + token + 1};
    }
    const size_t size = call.capacity * row_width_of(call);
    const AttentionHead<ElementOf<Call>> head{
        call.keys + group.head * size, call.values + group.head * size,
        call.keys + group.next_head * size, call.width, call.scale};
    drl::attend(kernels, head, queries, group.count, scores, plan.stride());
  }

 private:
  const float* bias_of(size_t row, size_t head, size_t token) const {
    if (call.bias == nullptr) return nullptr;
    const size_t own = call.bias_rows == 1 ? 0 : row;
    return call.bias + ((own * call.heads + head) * call.tokens + token) * call.slots;
  }
};

template <class Call>
bool possible(const Call& call) {
  return call.kv_heads != 0 && call.heads != 0 && call.heads % call.kv_heads == 0 &&
         call.width != 0 && call.slots >= call.tokens &&
         (call.bias == nullptr || call.bias_rows == 1 || call.bias_rows == call.rows);
}

template <class Call>
bool empty(const Call& call) {
  return call.rows == 0 || call.tokens == 0;
}

// Before anything is written.
template <class Call>
drl_status check(const Call& call) {
  if (!possible(call) || call.q == nullptr || call.k == nullptr || call.v == nullptr ||
      call.keys == nullptr || call.values == nullptr || call.lengths == nullptr ||
      call.y == nullptr) {
    return DRL_BAD_ARGUMENT;
  }
  for (size_t row = 0; row < call.rows; ++row) {
    if (call.lengths[row] < 0) return DRL_BAD_ARGUMENT;
    const size_t used = static_cast<size_t>(call.lengths[row]) + call.tokens;
    if (used > call.capacity) return DRL_CACHE_FULL;
    if (used > call.slots) return DRL_BAD_ARGUMENT;
  }
  return DRL_OK;
}

template <class Call>
size_t workspace_bytes(const Call& call) {
  Carver carver;
  if (!empty(call) && possible(call)) plan_of(call).scores(carver);
  return carver.bytes();
}

template <class Call>
drl_status run(const Call& call, drl_workspace workspace, const drl_execution& execution) {
  const AttentionKernels* kernels = attention_kernels_for(execution.isa);
  if (kernels == nullptr) return DRL_ISA_UNAVAILABLE;
  if (empty(call)) return DRL_OK;
  const drl_status status = check(call);
  if (status != DRL_OK) return status;
  if (workspace.data == nullptr || workspace.bytes < workspace_bytes(call)) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  const CachedAttention<Call> attention{call, *kernels, plan_of(call)};
  const AttentionPlan& plan = attention.plan;
  Carver carver(workspace);
  float* scores = plan.scores(carver);
  // Groups of one head may run side by side, and all of them read what is written.
  const bool extend_first = plan.groups() > 1;
  if (extend_first) {
    parallel_for(execution, plan.heads, [&](size_t key_head) { attention.extend(key_head); });
  }
  for_query_groups(plan, execution, scores,
                   [&](const QueryGroup& group, float* own) {
                     if (!extend_first) attention.extend(group.head);
                     attention.attend(group, own);
                   });
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_cached_attention_workspace_bytes(const drl_cached_attention* attention) {
  return drl::workspace_bytes(*attention);
}

extern "C" drl_status drl_cached_attention_run(const drl_cached_attention* attention,
                                               drl_workspace workspace,
                                               const drl_execution* execution) {
  if (attention == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*attention, workspace, *execution);
}

extern "C" size_t drl_quantized_cached_attention_workspace_bytes(
    const drl_quantized_cached_attention* attention) {
  return drl::workspace_bytes(*attention);
}

extern "C" drl_status drl_quantized_cached_attention_run(
    const drl_quantized_cached_attention* attention, drl_workspace workspace,
    const drl_execution* execution) {
  if (attention == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*attention, workspace, *execution);
}
