// Attention of decoder tokens to the states of their source, which the beams of a source share.
//
// Written once for states of float and of int8: a Call is drl_cross_attention or
// drl_quantized_cross_attention.
#include <type_traits>

#include "attention.h"

namespace drl {
namespace {

// From this bias down a state at the end counts as absent.
constexpr float kMasked = -1e4f;

template <class Call>
using ElementOf = std::remove_const_t<std::remove_pointer_t<decltype(Call::keys)>>;

template <class Call>
size_t row_width_of(const Call& call) {
  return row_width<ElementOf<Call>>(call.width);
}

template <class Call>
AttentionPlan plan_of(const Call& call) {
  const size_t beams = call.rows / call.sources;
  return {call.sources * call.kv_heads, beams * call.tokens * (call.heads / call.kv_heads),
          call.states, row_width_of(call) * sizeof(ElementOf<Call>)};
}

// States up to the last that is not masked. The others are padding, which by the operator's
// contract counts as absent, whatever its keys and values hold. All of them where all are masked.
size_t visible_states(const float* bias, size_t states) {
  size_t visible = states;
  while (visible > 0 && bias[visible - 1] <= kMasked) --visible;
  return visible == 0 ? states : visible;
}

template <class Call>
void attend_group(const Call& call, const AttentionKernels& kernels,
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
  const size_t size = call.states * row_width_of(call);
  const AttentionHead<ElementOf<Call>> head{
      call.keys + group.head * size, call.values + group.head * size,
      call.keys + group.next_head * size, call.width, call.scale};
  attend(kernels, head, queries, group.count, scores, stride);
}

template <class Call>
bool possible(const Call& call) {
  return call.sources != 0 && call.rows % call.sources == 0 && call.kv_heads != 0 &&
         call.heads != 0 && call.heads % call.kv_heads == 0 && call.width != 0 && call.states != 0;
}

template <class Call>
bool empty(const Call& call) {
  return call.rows == 0 || call.tokens == 0;
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
  if (!possible(call) || call.q == nullptr || call.keys == nullptr || call.values == nullptr ||
      call.bias == nullptr || call.y == nullptr) {
    return DRL_BAD_ARGUMENT;
  }
  if (workspace.data == nullptr || workspace.bytes < workspace_bytes(call)) {
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
  return drl::workspace_bytes(*attention);
}

extern "C" drl_status drl_cross_attention_run(const drl_cross_attention* attention,
                                              drl_workspace workspace,
                                              const drl_execution* execution) {
  if (attention == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*attention, workspace, *execution);
}

extern "C" size_t drl_quantized_cross_attention_workspace_bytes(
    const drl_quantized_cross_attention* attention) {
  return drl::workspace_bytes(*attention);
}

extern "C" drl_status drl_quantized_cross_attention_run(
    const drl_quantized_cross_attention* attention, drl_workspace workspace,
    const drl_execution* execution) {
  if (attention == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*attention, workspace, *execution);
}
