// drl.Projections: queries, keys and values of an attention layer from one linear of float weights.
#include "custom_op.h"
#include "fast_products.h"
#include "weights.h"

namespace drl::ort {
namespace {

struct Projections {
  static constexpr const char* kName = "Projections";
  enum Input : size_t { kX, kWeight, kNorm, kBias };
  static constexpr Argument kInputs[] = {{"x", kFloat},
                                         {"weight", kFloat},
                                         {"norm", kFloat, kOptional},
                                         {"bias", kFloat, kOptional}};
  static constexpr Argument kOutputs[] = {{"q", kFloat}, {"k", kFloat}, {"v", kFloat}};

  void configure(Attributes& attributes) {
    query_columns = attributes.count("query_columns");
    kv_columns = attributes.count("kv_columns");
    epsilon = attributes.number("epsilon");
  }

  void compute(Call& call) const {
    const Tensor x = call.tensor(kX, 3);
    if (!call.ok()) return;
    call.check_some(kX, x, 2, "number in a state");
    if (!call.ok()) return;
    const int64_t depth = x.dims[2], columns = query_columns + 2 * kv_columns;
    drl_float_linear linear{};
    linear.matrices = 1;
    linear.columns = static_cast<size_t>(columns);
    linear.depth = static_cast<size_t>(depth);
    linear.weights = read_panels(call, kWeight, 1, columns, depth);
    linear.rows = read_rows(call, x, kNorm, epsilon);
    linear.bias = call.values<float>(kBias, {columns});
    for (size_t part = 0; part < 3; ++part) {
      const int64_t width = part == 0 ? query_columns : kv_columns;
      linear.outputs[part] = {call.output<float>(part, x.with_last(width)),
                              static_cast<size_t>(width)};
    }
    if (linear.rows.count > 0) {
      call.run(linear, drl_float_linear_workspace_bytes, drl_float_linear_run);
    }
  }

  int64_t query_columns = 0;
  int64_t kv_columns = 0;
  float epsilon = 0;
};

}  // namespace

Tables projections() { return has_fast_products() ? of_float32<Projections>() : Tables{}; }

}  // namespace drl::ort
