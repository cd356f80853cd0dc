// Attention of decoder tokens to the states of their source, which the beams of a source share.
#include "attention.h"

namespace drl {
namespace {

// From this bias down a state at the end counts as absent.
constexpr float kMasked = -1e4f;

AttentionPlan plan_of(const drl_cross_attention& call) {
  const size_t beams = call.rows / call.sources;
  return {call.sources * call.kv_heads, beams * call.tokens * (call.heads / call.kv_heads),
          call.states, call.width};
}

// States up to the last that is not masked. The others are padding, which by the operator's
// contract counts as absent, whatever its keys and values hold. All of them where all are masked.
size_t visible_states(const float* bias, size_t states) {
  size_t visible = states;
  while (visible > 0 && bias[visible - 1] <= kMasked) --visible;
  return visible == 0 ? states : visible;
}

void attend_group(const drl_cross_attention& call, const AttentionKernels& kernels,
                  const QueryGroup& group, float* scores, size_t stride) {
  const size_t source = group.head / call.kv_heads;
  const size_t shared = call.heads / call.kv_heads;
  const size_t beams = call.rows / call.sources;
  const float* bias = call.bias + source * call.states;
  const size_t slots = visible_states(bias, call.states);
  AttentionQuery queries[kMostQueries];
  for (size_t i = 0; i < group.count; ++i) {
    const size_t token = source * beams * call.tokens + (group.first + i) / shared;
    const size_t head = group.head % call.kv_heads * shared + (group.first + i) % shared;
    const size_t place = (token * call.heads + head) * call.width;
    queries[i] = {call.q + place, bias, call.y + place, slots};
  }
  const size_t floats = call.states * call.width;
  const AttentionHead head{call.keys + group.head * floats, call.values + group.head * floats,
                           call.keys + group.next_head * floats, call.width, call.scale};
  kernels.attend(head, queries, group.count, scores, stride);
}

bool possible(const drl_cross_attention& call) {
  return call.sources != 0 && call.rows % call.sources == 0 && call.kv_heads != 0 &&
         call.heads != 0 && call.heads % call.kv_heads == 0 && call.width != 0 && call.states != 0;
}

bool empty(const drl_cross_attention& call) { return call.rows == 0 || call.tokens == 0; }

drl_status run(const drl_cross_attention& call, drl_workspace workspace,
               const drl_execution& execution) {
  const AttentionKernels* kernels = attention_kernels_for(execution.isa);
  if (kernels == nullptr) return DRL_ISA_UNAVAILABLE;
  if (empty(call)) return DRL_OK;
  if (!possible(call) || call.q == nullptr || call.keys == nullptr || call.values == nullptr ||
      call.bias == nullptr || call.y == nullptr) {
    return DRL_BAD_ARGUMENT;
  }
  if (workspace.data == nullptr || workspace.bytes < drl_cross_attention_workspace_bytes(&call)) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  const AttentionPlan plan = plan_of(call);
  Carver carver(workspace);
  for_query_groups(plan, execution, plan.scores(carver),
                   [&](const QueryGroup& group, float* scores) {
                     attend_group(call, *kernels, group, scores, plan.stride());
                   });
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_cross_attention_workspace_bytes(const drl_cross_attention* attention) {
  drl::Carver carver;
  if (!drl::empty(*attention) && drl::possible(*attention)) {
    drl::plan_of(*attention).scores(carver);
  }
  return carver.bytes();
}

extern "C" drl_status drl_cross_attention_run(const drl_cross_attention* attention,
                                              drl_workspace workspace,
                                              const drl_execution* execution) {
  if (attention == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*attention, workspace, *execution);
}
