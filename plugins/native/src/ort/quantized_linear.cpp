// drl.QuantizedLinear(x [..., K], packed weight, bias [N]?) -> [..., N], attribute `activation`.
#include "custom_op.h"

namespace drl::ort {
namespace {

struct NamedActivation {
  const char* name;
  drl_activation activation;
};

constexpr NamedActivation kActivations[] = {{"none", DRL_ACTIVATION_NONE},
                                            {"relu", DRL_ACTIVATION_RELU},
                                            {"gelu", DRL_ACTIVATION_GELU},
                                            {"gelu_tanh", DRL_ACTIVATION_GELU_TANH},
                                            {"silu", DRL_ACTIVATION_SILU}};

struct QuantizedLinear {
  static constexpr const char* kName = "QuantizedLinear";
  static constexpr ONNXTensorElementDataType kInputs[] = {kFloat, kBytes, kFloat};
  static constexpr size_t kRequired = 2;

  static void compute(const KernelState& state, Call& call) {
    const Call::Tensor x = call.input(0), weight = call.input(1), bias = call.input(2);
    drl_linear linear{};
    drl_packed_shape shape{};
    linear.weight = {weight.data, weight.count()};
    if (call.ok()) call.check(drl_read_packed_shape(linear.weight, &shape));
    if (!call.ok()) return;
    if (x.rank == 0 || x.dims[x.rank - 1] != static_cast<int64_t>(shape.depth)) {
      return call.fail("QuantizedLinear: the last dimension of x is not the depth of the weight");
    }
    if (bias.given && (bias.rank != 1 || bias.count() != shape.columns)) {
      return call.fail("QuantizedLinear: the bias is not as long as the weight has columns");
    }
    const NamedActivation* chosen = nullptr;
    for (const NamedActivation& known : kActivations) {
      if (std::strcmp(state.activation, known.name) == 0) chosen = &known;
    }
    if (chosen == nullptr) {
      return call.fail("QuantizedLinear: activation must be none, relu, gelu, gelu_tanh or silu");
    }
    int64_t dims[8];
    std::memcpy(dims, x.dims, sizeof dims);
    dims[x.rank - 1] = static_cast<int64_t>(shape.columns);
    linear.bias = static_cast<const float*>(bias.data);
    linear.activation = chosen->activation;
    linear.x = static_cast<const float*>(x.data);
    linear.rows = x.count() / shape.depth;
    linear.y = call.output(dims, x.rank);
    if (!call.ok() || linear.rows == 0) return;
    const Scratch scratch(state.allocator, drl_linear_workspace_bytes(&shape, linear.rows));
    const drl_execution execution = call.execution(state.isa);
    call.check(drl_linear_int8(&linear, scratch.workspace(), &execution));
  }
};

}  // namespace

const OrtCustomOp* quantized_linear() {
  static const CustomOp<QuantizedLinear> op;
  return &op;
}

}  // namespace drl::ort
