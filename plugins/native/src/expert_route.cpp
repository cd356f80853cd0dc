// Level 2 of routing: from a hidden state and its groups to the k most probable experts.
#include "attention_kernels.h"
#include "best_k.h"
#include "parallel_for.h"
#include "workspace.h"

namespace drl {
namespace {

// The score of an expert whose group is not allowed, as in the operator.
constexpr float kBlocked = -1e4f;
// Products that are worth a task of their own: some 10 µs.
constexpr size_t kTaskProducts = 1024 * 1024;
constexpr size_t kMostRouteTasks = 32;

struct ExpertRoute {
  const drl_expert_route& call;
  const AttentionKernels& kernels;
  float* scores;  // [tokens, stride], then probabilities

  size_t stride() const { return stride_of(call); }
  static size_t stride_of(const drl_expert_route& call) {
    return ceil_div(call.experts, kFloatLanes) * kFloatLanes;
  }

  size_t tokens_per_task() const {
    const size_t worth = ceil_div(kTaskProducts, call.depth * call.experts);
    const size_t balanced = ceil_div(call.tokens, kMostRouteTasks);
    return worth > balanced ? worth : balanced;
  }

  void route(size_t first, size_t last) const {
    kernels.project(call.x + first * call.depth, last - first, call.depth, call.weight,
                    call.experts, scores + first * stride(), stride());
    for (size_t token = first; token < last; ++token) {
      if (call.token_mask[token] != 0) {
        choose(token);
      } else {
        for (size_t i = 0; i < call.k; ++i) {
          call.expert_ids[token * call.k + i] = -1;
          call.gates[token * call.k + i] = 0.0f;
        }
      }
    }
  }

 private:
  void choose(size_t token) const {
    float* own = scores + token * stride();
    const size_t members = call.experts / call.groups;
    for (size_t group = 0; group < call.groups; ++group) {
      const size_t place = token * call.groups + group;
      const float prior = call.prior_scale * call.group_log_probs[place];
      const size_t start = group * members;
      for (size_t expert = start; expert < start + members; ++expert) {
        const float bias = call.bias == nullptr ? 0.0f : call.bias[expert];
        own[expert] = call.allowed[place] != 0 ? own[expert] + bias + prior : kBlocked;
      }
    }
    kernels.softmax(own, call.experts);
    BestK best(call.k, call.gates + token * call.k, call.expert_ids + token * call.k);
    for (size_t expert = 0; expert < call.experts; ++expert) {
      best.offer(own[expert], static_cast<int32_t>(expert));
    }
  }
};

bool possible(const drl_expert_route& call) {
  return call.depth != 0 && call.groups != 0 && call.experts != 0 &&
         call.experts % call.groups == 0 && call.k <= call.experts;
}

drl_status run(const drl_expert_route& call, drl_workspace workspace,
               const drl_execution& execution) {
  const AttentionKernels* kernels = attention_kernels_for(execution.isa);
  if (kernels == nullptr) return DRL_ISA_UNAVAILABLE;
  if (call.tokens == 0 || call.k == 0) return DRL_OK;
  if (!possible(call) || call.x == nullptr || call.weight == nullptr ||
      call.group_log_probs == nullptr || call.allowed == nullptr || call.token_mask == nullptr ||
      call.expert_ids == nullptr || call.gates == nullptr) {
    return DRL_BAD_ARGUMENT;
  }
  if (workspace.data == nullptr || workspace.bytes < drl_expert_route_workspace_bytes(&call)) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  Carver carver(workspace);
  const ExpertRoute layer{call, *kernels,
                          carver.take<float>(call.tokens * ExpertRoute::stride_of(call))};
  const size_t tokens = layer.tokens_per_task();
  parallel_for(execution, ceil_div(call.tokens, tokens), [&](size_t task) {
    const size_t first = task * tokens;
    layer.route(first, first + tokens < call.tokens ? first + tokens : call.tokens);
  });
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_expert_route_workspace_bytes(const drl_expert_route* route) {
  drl::Carver carver;
  carver.take<float>(route->tokens * drl::ExpertRoute::stride_of(*route));
  return carver.bytes();
}

extern "C" drl_status drl_expert_route_run(const drl_expert_route* route, drl_workspace workspace,
                                           const drl_execution* execution) {
  if (route == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*route, workspace, *execution);
}
