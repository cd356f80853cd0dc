// Causal self-attention of new tokens over a cache of keys and values, which it extends in place.
#include <cstring>

#include "attention.h"

namespace drl {
namespace {

AttentionPlan plan_of(const drl_cached_attention& call) {
  return {call.rows * call.kv_heads, call.tokens * (call.heads / call.kv_heads), call.slots,
          call.width};
}

struct CachedAttention {
  const drl_cached_attention& call;
  const AttentionKernels& kernels;
  AttentionPlan plan;

  // The new keys and values of a key head, to their slots.
  void extend(size_t key_head) const {
    const size_t row = key_head / call.kv_heads;
    const size_t first = static_cast<size_t>(call.lengths[row]);
    const size_t bytes = call.width * sizeof(float);
    for (size_t token = 0; token < call.tokens; ++token) {
      const size_t from = (row * call.tokens + token) * call.kv_heads + key_head % call.kv_heads;
      const size_t to = key_head * call.capacity + first + token;
      std::memcpy(call.keys + to * call.width, call.k + from * call.width, bytes);
      std::memcpy(call.values + to * call.width, call.v + from * call.width, bytes);
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
    const size_t floats = call.capacity * call.width;
    const AttentionHead head{call.keys + group.head * floats, call.values + group.head * floats,
                             call.keys + group.next_head * floats, call.width, call.scale};
    kernels.attend(head, queries, group.count, scores, plan.stride());
  }

 private:
  const float* bias_of(size_t row, size_t head, size_t token) const {
    if (call.bias == nullptr) return nullptr;
    const size_t own = call.bias_rows == 1 ? 0 : row;
    return call.bias + ((own * call.heads + head) * call.tokens + token) * call.slots;
  }
};

bool possible(const drl_cached_attention& call) {
  return call.kv_heads != 0 && call.heads != 0 && call.heads % call.kv_heads == 0 &&
         call.width != 0 && call.slots >= call.tokens &&
         (call.bias == nullptr || call.bias_rows == 1 || call.bias_rows == call.rows);
}

bool empty(const drl_cached_attention& call) { return call.rows == 0 || call.tokens == 0; }

// Before anything is written.
drl_status check(const drl_cached_attention& call) {
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

drl_status run(const drl_cached_attention& call, drl_workspace workspace,
               const drl_execution& execution) {
  const AttentionKernels* kernels = attention_kernels_for(execution.isa);
  if (kernels == nullptr) return DRL_ISA_UNAVAILABLE;
  if (empty(call)) return DRL_OK;
  const drl_status status = check(call);
  if (status != DRL_OK) return status;
  if (workspace.data == nullptr || workspace.bytes < drl_cached_attention_workspace_bytes(&call)) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  const CachedAttention attention{call, *kernels, plan_of(call)};
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
  drl::Carver carver;
  if (!drl::empty(*attention) && drl::possible(*attention)) {
    drl::plan_of(*attention).scores(carver);
  }
  return carver.bytes();
}

extern "C" drl_status drl_cached_attention_run(const drl_cached_attention* attention,
                                               drl_workspace workspace,
                                               const drl_execution* execution) {
  if (attention == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*attention, workspace, *execution);
}
