// drl.RoutedFFN: the feed-forward layer of experts with float weights.
#include "custom_op.h"
#include "fast_products.h"

namespace drl::ort {
namespace {

struct RoutedFFN {
  static constexpr const char* kName = "RoutedFFN";
  enum Input : size_t {
    kHidden, kExpertIds, kGates, kUp, kDown, kGate, kUpBias, kDownBias, kGateBias
  };
  static constexpr Argument kInputs[] = {{"hidden", kFloat, kRequired, true},
                                         {"expert_ids", kInt32},
                                         {"gates", kFloat},
                                         {"up", kFloat, kRequired, true},
                                         {"down", kFloat, kRequired, true},
                                         {"gate", kFloat, kOptional, true},
                                         {"up_bias", kFloat, kOptional, true},
                                         {"down_bias", kFloat, kOptional, true},
                                         {"gate_bias", kFloat, kOptional, true}};
  static constexpr Argument kOutputs[] = {{"output", kFloat, kRequired, true}};

  void configure(Attributes& attributes) {
    activation = attributes.activation(/*may_be_none=*/false);
  }

  void compute(Call& call) const {
    const Tensor hidden = call.tensor(kHidden, 3), ids = call.tensor(kExpertIds, 3);
    const Tensor up = call.tensor(kUp, 3);
    if (!call.ok()) return;
    call.check_some(kHidden, hidden, 2, "number in a state");
    call.check_some(kUp, up, 2, "column");
    if (!call.ok()) return;
    const int64_t batch = hidden.dims[0], steps = hidden.dims[1], width = hidden.dims[2];
    const int64_t choices = ids.dims[2], experts = up.dims[0], inner = up.dims[2];
    const Shape chosen{batch, steps, choices}, raised{experts, width, inner};
    drl_float_routed_ffn layer{};
    layer.expert_ids = call.values<int32_t>(kExpertIds, chosen);
    layer.gates = call.values<float>(kGates, chosen);
    layer.up = call.values<float>(kUp, raised);
    layer.down = call.values<float>(kDown, {experts, inner, width});
    if (activation.gated) {
      layer.gate = call.values<float>(kGate, raised, kRequired);
      layer.gate_bias = call.values<float>(kGateBias, {experts, inner});
    } else {
      for (const size_t input : {kGate, kGateBias}) {
        if (call.tensor(input).given) {
          call.failure().say("activation %s takes no %s", activation.name, call.name(input));
        }
      }
    }
    layer.up_bias = call.values<float>(kUpBias, {experts, inner});
    layer.down_bias = call.values<float>(kDownBias, {experts, width});
    layer.activation = activation.of;
    layer.x = hidden.values<float>();
    layer.tokens = static_cast<size_t>(batch * steps);
    layer.choices = static_cast<size_t>(choices);
    layer.experts = static_cast<size_t>(experts);
    layer.width = static_cast<size_t>(width);
    layer.inner = static_cast<size_t>(inner);
    layer.y = call.output<float>(0, {batch, steps, width});
    if (layer.tokens > 0) {
      call.run(layer, drl_float_routed_ffn_workspace_bytes, drl_float_routed_ffn_run);
    }
  }

  Activation activation{};
};

}  // namespace

Tables routed_ffn() { return has_fast_products() ? of_any_float<RoutedFFN>() : Tables{}; }

}  // namespace drl::ort
