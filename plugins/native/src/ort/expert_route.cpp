// drl.ExpertRoute: from a hidden state and its groups to k experts.
#include "custom_op.h"

namespace drl::ort {
namespace {

struct ExpertRoute {
  static constexpr const char* kName = "ExpertRoute";
  enum Input : size_t {
    kHidden, kWeight, kPriorScale, kGroupLogProbs, kAllowed, kTokenMask, kK, kBias
  };
  static constexpr Argument kInputs[] = {{"hidden", kFloat, kRequired, true},
                                         {"weight", kFloat, kRequired, true},
                                         {"prior_scale", kFloat},
                                         {"group_log_probs", kFloat},
                                         {"allowed", kBool},
                                         {"token_mask", kBool},
                                         {"k", kInt64},
                                         {"bias", kFloat, kOptional, true}};
  static constexpr Argument kOutputs[] = {{"expert_ids", kInt32}, {"gates", kFloat}};

  void configure(Attributes&) {}

  void compute(Call& call) const {
    const Tensor hidden = call.tensor(kHidden, 3), weight = call.tensor(kWeight, 2);
    const Tensor prior = call.tensor(kGroupLogProbs, 3);
    const float* prior_scale = call.values<float>(kPriorScale, {});
    const int64_t* k = call.values<int64_t>(kK, {1});
    if (!call.ok()) return;
    const int64_t batch = hidden.dims[0], steps = hidden.dims[1], depth = hidden.dims[2];
    const int64_t experts = weight.dims[1], groups = prior.dims[2];
    if (*k < 0 || *k > experts) {
      return call.failure().say("k must be in [0, %" PRId64 "] and is %" PRId64,
                                experts, *k);
    }
    if (groups == 0 || experts % groups != 0) {
      return call.failure().say("%" PRId64 " experts do not divide into %" PRId64 " groups",
                                experts, groups);
    }
    const Shape by_group{batch, steps, groups}, chosen{batch, steps, *k};
    drl_expert_route route{};
    route.x = hidden.values<float>();
    route.weight = call.values<float>(kWeight, {depth, experts});
    route.bias = call.values<float>(kBias, {experts});
    route.prior_scale = *prior_scale;
    route.group_log_probs = call.values<float>(kGroupLogProbs, by_group);
    route.allowed = call.values<uint8_t>(kAllowed, by_group);
    route.token_mask = call.values<uint8_t>(kTokenMask, {batch, steps});
    route.tokens = static_cast<size_t>(batch * steps);
    route.depth = static_cast<size_t>(depth);
    route.experts = static_cast<size_t>(experts);
    route.groups = static_cast<size_t>(groups);
    route.k = static_cast<size_t>(*k);
    route.expert_ids = call.output<int32_t>(0, chosen);
    route.gates = call.output<float>(1, chosen);
    if (chosen.count() > 0) {
      call.check_some(kHidden, hidden, 2, "number in a state");
      call.run(route, drl_expert_route_workspace_bytes, drl_expert_route_run);
    }
  }
};

}  // namespace

Tables expert_route() { return of_any_float<ExpertRoute>(); }

}  // namespace drl::ort
