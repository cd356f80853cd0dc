// drl.QuantizedProjections: queries, keys and values of an attention layer from one linear.
#include "custom_op.h"
#include "weights.h"

namespace drl::ort {
namespace {

struct QuantizedProjections {
  static constexpr const char* kName = "QuantizedProjections";
  enum Input : size_t { kX, kWeight, kScale, kMultiplier, kNorm, kBias };
  static constexpr Argument kInputs[] = {{"x", kFloat},
                                         {"weight", kUint8},
                                         {"scale", kFloat},
                                         {"multiplier", kUint8, kOptional},
                                         {"norm", kFloat, kOptional},
                                         {"bias", kFloat, kOptional}};
  static constexpr Argument kOutputs[] = {{"q", kFloat}, {"k", kFloat}, {"v", kFloat}};

  void configure(Attributes& attributes) {
    attributes.check_layout();
    query_columns = attributes.count("query_columns");
    kv_columns = attributes.count("kv_columns");
    epsilon = attributes.number("epsilon");
  }

  void compute(Call& call) const {
    const Tensor x = call.tensor(kX, 3);
    if (!call.ok()) return;
    const int64_t depth = x.dims[2], columns = query_columns + 2 * kv_columns;
    drl_linear linear{};
    linear.weights = read_weights(call, {kWeight, kScale, kMultiplier}, 1, columns, depth);
    linear.rows = read_rows(call, x, kNorm, epsilon);
    linear.bias = call.values<float>(kBias, {columns});
    for (size_t part = 0; part < 3; ++part) {
      const int64_t width = part == 0 ? query_columns : kv_columns;
      linear.outputs[part].y = call.output<float>(part, x.with_last(width));
      linear.outputs[part].columns = static_cast<size_t>(width);
    }
    if (linear.rows.count > 0) call.run(linear, drl_linear_workspace_bytes, drl_linear_run);
  }

  int64_t query_columns = 0;
  int64_t kv_columns = 0;
  float epsilon = 0;
};

}  // namespace

Tables quantized_projections() { return of_float32<QuantizedProjections>(); }

}  // namespace drl::ort
