// drl.QuantizedRoutedFFN: the feed-forward layer of experts with packed weights.
#include "custom_op.h"
#include "weights.h"

namespace drl::ort {
namespace {

struct QuantizedRoutedFFN {
  static constexpr const char* kName = "QuantizedRoutedFFN";
  enum Input : size_t {
    kHidden, kExpertIds, kGates,
    kUp, kUpScale, kDown, kDownScale, kUpMultiplier, kDownMultiplier,
    kGate, kGateScale, kGateMultiplier,
    kUpBias, kDownBias, kGateBias, kResidual
  };
  static constexpr Argument kInputs[] = {{"hidden", kFloat},
                                         {"expert_ids", kInt32},
                                         {"gates", kFloat},
                                         {"up", kUint8},
                                         {"up_scale", kFloat},
                                         {"down", kUint8},
                                         {"down_scale", kFloat},
                                         {"up_multiplier", kUint8, kOptional},
                                         {"down_multiplier", kUint8, kOptional},
                                         {"gate", kUint8, kOptional},
                                         {"gate_scale", kFloat, kOptional},
                                         {"gate_multiplier", kUint8, kOptional},
                                         {"up_bias", kFloat, kOptional},
                                         {"down_bias", kFloat, kOptional},
                                         {"gate_bias", kFloat, kOptional},
                                         {"residual", kFloat, kOptional}};
  static constexpr Argument kOutputs[] = {{"output", kFloat}};

  void configure(Attributes& attributes) {
    attributes.check_layout();
    inner = attributes.count("inner");
    activation = attributes.activation(/*may_be_none=*/false);
  }

  void compute(Call& call) const {
    const Tensor hidden = call.tensor(kHidden, 3), ids = call.tensor(kExpertIds, 3);
    // The first dimension of all packed weights is that of the experts.
    const Tensor up = call.tensor(kUp, 5, 6);
    if (!call.ok()) return;
    const int64_t batch = hidden.dims[0], steps = hidden.dims[1], width = hidden.dims[2];
    const int64_t choices = ids.dims[2], experts = up.dims[0];
    const Shape chosen{batch, steps, choices}, output{batch, steps, width};
    drl_routed_ffn layer{};
    layer.expert_ids = call.values<int32_t>(kExpertIds, chosen);
    layer.gates = call.values<float>(kGates, chosen);
    layer.up = read_weights(call, {kUp, kUpScale, kUpMultiplier}, experts, inner, width);
    layer.down = read_weights(call, {kDown, kDownScale, kDownMultiplier}, experts, width, inner);
    if (activation.gated) {
      layer.gate = read_weights(call, {kGate, kGateScale, kGateMultiplier}, experts, inner, width);
      layer.gate_bias = call.values<float>(kGateBias, {experts, inner});
    } else {
      for (const size_t input : {kGate, kGateScale, kGateMultiplier, kGateBias}) {
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
    layer.residual = call.values<float>(kResidual, output);
    layer.y = call.output<float>(0, output);
    if (layer.tokens > 0) call.run(layer, drl_routed_ffn_workspace_bytes, drl_routed_ffn_run);
  }

  int64_t inner = 0;
  Activation activation{};
};

}  // namespace

Tables quantized_routed_ffn() { return of_float32<QuantizedRoutedFFN>(); }

}  // namespace drl::ort
