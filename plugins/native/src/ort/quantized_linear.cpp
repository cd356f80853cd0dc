// drl.QuantizedLinear: a linear of packed weights, with what stands before and after it.
#include "custom_op.h"
#include "weights.h"

namespace drl::ort {
namespace {

struct QuantizedLinear {
  static constexpr const char* kName = "QuantizedLinear";
  enum Input : size_t { kX, kWeight, kScale, kMultiplier, kNorm, kBias, kResidual };
  static constexpr Argument kInputs[] = {{"x", kFloat},
                                         {"weight", kUint8},
                                         {"scale", kFloat},
                                         {"multiplier", kUint8, kOptional},
                                         {"norm", kFloat, kOptional},
                                         {"bias", kFloat, kOptional},
                                         {"residual", kFloat, kOptional}};
  static constexpr Argument kOutputs[] = {{"y", kFloat}};

  void configure(Attributes& attributes) {
    attributes.check_layout();
    columns = attributes.count("columns");
    epsilon = attributes.number("epsilon");
    activation = attributes.activation(/*may_be_none=*/true);
  }

  void compute(Call& call) const {
    const Tensor x = call.tensor(kX, 3);
    if (!call.ok()) return;
    const int64_t depth = x.dims[2], matrices = activation.gated ? 2 : 1;
    const Shape y = x.with_last(columns);
    drl_linear linear{};
    linear.weights = read_weights(call, {kWeight, kScale, kMultiplier}, matrices, columns, depth);
    linear.rows = read_rows(call, x, kNorm, epsilon);
    linear.bias = call.values<float>(kBias, {matrices * columns});
    linear.residual = call.values<float>(kResidual, y);
    linear.activation = activation.of;
    linear.outputs[0].y = call.output<float>(0, y);
    linear.outputs[0].columns = linear.weights.columns;
    if (linear.rows.count > 0) call.run(linear, drl_linear_workspace_bytes, drl_linear_run);
  }

  int64_t columns = 0;
  float epsilon = 0;
  Activation activation{};
};

}  // namespace

Tables quantized_linear() { return of_float32<QuantizedLinear>(); }

}  // namespace drl::ort
