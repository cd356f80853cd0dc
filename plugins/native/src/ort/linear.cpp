// drl.Linear: a linear of float weights, with what stands before and after it.
#include "custom_op.h"
#include "fast_products.h"
#include "weights.h"

namespace drl::ort {
namespace {

struct Linear {
  static constexpr const char* kName = "Linear";
  enum Input : size_t { kX, kWeight, kNorm, kBias, kResidual };
  static constexpr Argument kInputs[] = {{"x", kFloat},
                                         {"weight", kFloat},
                                         {"norm", kFloat, kOptional},
                                         {"bias", kFloat, kOptional},
                                         {"residual", kFloat, kOptional}};
  static constexpr Argument kOutputs[] = {{"y", kFloat}};

  void configure(Attributes& attributes) {
    columns = attributes.count("columns");
    epsilon = attributes.number("epsilon");
    activation = attributes.activation(/*may_be_none=*/true);
  }

  void compute(Call& call) const {
    const Tensor x = call.tensor(kX, 3);
    if (!call.ok()) return;
    call.check_some(kX, x, 2, "number in a state");
    if (!call.ok()) return;
    const int64_t depth = x.dims[2], matrices = activation.gated ? 2 : 1;
    const Shape y = x.with_last(columns);
    drl_float_linear linear{};
    linear.matrices = static_cast<size_t>(matrices);
    linear.columns = static_cast<size_t>(columns);
    linear.depth = static_cast<size_t>(depth);
    linear.weights = read_panels(call, kWeight, matrices, columns, depth);
    linear.rows = read_rows(call, x, kNorm, epsilon);
    linear.bias = call.values<float>(kBias, {matrices * columns});
    linear.residual = call.values<float>(kResidual, y);
    linear.activation = activation.of;
    linear.outputs[0] = {call.output<float>(0, y), linear.columns};
    if (linear.rows.count > 0) {
      call.run(linear, drl_float_linear_workspace_bytes, drl_float_linear_run);
    }
  }

  int64_t columns = 0;
  float epsilon = 0;
  Activation activation{};
};

}  // namespace

Tables linear() { return has_fast_products() ? of_float32<Linear>() : Tables{}; }

}  // namespace drl::ort
