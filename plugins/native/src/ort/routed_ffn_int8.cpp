// drl.RoutedFFNInt8: the operator RoutedFFN with packed int8 weights.
//
// Inputs as there: hidden [B, T, d], expert_ids and gates [B, T, k], packed up, packed down,
// packed gate?, up_bias?, down_bias?, gate_bias?; the attribute `activation` too.
#include "custom_op.h"

namespace drl::ort {
namespace {

struct NamedActivation {
  const char* name;
  drl_activation activation;
  bool gated;
};

constexpr NamedActivation kActivations[] = {{"silu_glu", DRL_ACTIVATION_SILU, true},
                                            {"gelu_glu", DRL_ACTIVATION_GELU_TANH, true},
                                            {"relu", DRL_ACTIVATION_RELU, false},
                                            {"gelu", DRL_ACTIVATION_GELU, false},
                                            {"gelu_tanh", DRL_ACTIVATION_GELU_TANH, false},
                                            {"silu", DRL_ACTIVATION_SILU, false}};

bool fits(const Call::Tensor& bias, uint64_t experts, uint64_t width) {
  return !bias.given || (bias.rank == 2 && static_cast<uint64_t>(bias.dims[0]) == experts &&
                         static_cast<uint64_t>(bias.dims[1]) == width);
}

struct RoutedFfnInt8 {
  static constexpr const char* kName = "RoutedFFNInt8";
  static constexpr ONNXTensorElementDataType kInputs[] = {
      kFloat, kInt32, kFloat, kBytes, kBytes, kBytes, kFloat, kFloat, kFloat};
  static constexpr size_t kRequired = 5;

  static void compute(const KernelState& state, Call& call) {
    const Call::Tensor x = call.input(0), ids = call.input(1), gates = call.input(2);
    const Call::Tensor up = call.input(3), down = call.input(4), gate = call.input(5);
    const Call::Tensor up_bias = call.input(6), down_bias = call.input(7);
    const Call::Tensor gate_bias = call.input(8);
    drl_routed_ffn layer{};
    drl_packed_shape shape{};
    layer.up = {up.data, up.count()};
    layer.down = {down.data, down.count()};
    if (gate.given) layer.gate = {gate.data, gate.count()};
    if (call.ok()) call.check(drl_read_packed_shape(layer.up, &shape));
    if (!call.ok()) return;
    if (!x.is(3) || !ids.is(3) || !gates.is(3) ||
        std::memcmp(x.dims, ids.dims, 2 * sizeof *x.dims) != 0 ||
        std::memcmp(ids.dims, gates.dims, 3 * sizeof *ids.dims) != 0 ||
        x.dims[2] != static_cast<int64_t>(shape.depth)) {
      return call.fail("RoutedFFNInt8: hidden, expert_ids, gates and weights do not fit");
    }
    if (!fits(up_bias, shape.matrices, shape.columns) ||
        !fits(gate_bias, shape.matrices, shape.columns) ||
        !fits(down_bias, shape.matrices, shape.depth)) {
      return call.fail("RoutedFFNInt8: a bias does not fit the weights");
    }
    const NamedActivation* chosen = nullptr;
    for (const NamedActivation& known : kActivations) {
      if (std::strcmp(state.activation, known.name) == 0) chosen = &known;
    }
    if (chosen == nullptr || chosen->gated != gate.given) {
      return call.fail("RoutedFFNInt8: activation is unknown, or goes the other way with a gate");
    }
    layer.up_bias = static_cast<const float*>(up_bias.data);
    layer.gate_bias = static_cast<const float*>(gate_bias.data);
    layer.down_bias = static_cast<const float*>(down_bias.data);
    layer.activation = chosen->activation;
    layer.x = static_cast<const float*>(x.data);
    layer.expert_ids = static_cast<const int32_t*>(ids.data);
    layer.gates = static_cast<const float*>(gates.data);
    layer.tokens = static_cast<size_t>(x.dims[0] * x.dims[1]);
    layer.choices = static_cast<size_t>(ids.dims[2]);
    layer.y = call.output(x.dims, x.rank);
    if (!call.ok() || layer.tokens == 0) return;
    const size_t bytes = drl_routed_ffn_workspace_bytes(&shape, layer.tokens, layer.choices);
    const Scratch scratch(state.allocator, bytes);
    const drl_execution execution = call.execution(state.isa);
    call.check(drl_routed_ffn_int8(&layer, scratch.workspace(), &execution));
  }
};

}  // namespace

const OrtCustomOp* routed_ffn_int8() {
  static const CustomOp<RoutedFfnInt8> op;
  return &op;
}

}  // namespace drl::ort
