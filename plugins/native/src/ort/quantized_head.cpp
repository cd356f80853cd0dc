// drl.QuantizedHead: logits, or the largest of them, and the logarithm of the sum of all.
#include "custom_op.h"
#include "weights.h"

namespace drl::ort {
namespace {

struct QuantizedHead {
  static constexpr const char* kName = "QuantizedHead";
  enum Input : size_t { kX, kWeight, kScale, kMultiplier, kNorm, kBias, kCandidates };
  static constexpr Argument kInputs[] = {{"x", kFloat},
                                         {"weight", kUint8},
                                         {"scale", kFloat},
                                         {"multiplier", kUint8, kOptional},
                                         {"norm", kFloat, kOptional},
                                         {"bias", kFloat, kOptional},
                                         {"candidates", kInt64}};
  enum Output : size_t { kLogits, kValues, kIds, kNormalisers };
  static constexpr Argument kOutputs[] = {
      {"logits", kFloat}, {"values", kFloat}, {"ids", kInt32}, {"normalisers", kFloat}};

  void configure(Attributes& attributes) {
    attributes.check_layout();
    columns = attributes.count("columns");
    factor = attributes.number("factor");
    epsilon = attributes.number("epsilon");
  }

  void compute(Call& call) const {
    const Tensor x = call.tensor(kX, 3);
    const int64_t* candidates = call.values<int64_t>(kCandidates, {1});
    if (!call.ok()) return;
    const int64_t batch = x.dims[0], steps = x.dims[1], depth = x.dims[2], k = *candidates;
    if (k < 0 || k > columns) {
      return call.failure().say("candidates must be in [0, %" PRId64 "] and is %" PRId64,
                                columns, k);
    }
    drl_head head{};
    head.weights = read_weights(call, {kWeight, kScale, kMultiplier}, 1, columns, depth);
    head.rows = read_rows(call, x, kNorm, epsilon);
    head.bias = call.values<float>(kBias, {columns});
    head.factor = factor;
    head.k = static_cast<size_t>(k);
    float* logits = call.output<float>(kLogits, {batch, steps, k == 0 ? columns : 0});
    float* values = call.output<float>(kValues, {batch, steps, k});
    int32_t* ids = call.output<int32_t>(kIds, {batch, steps, k});
    if (k == 0) {
      head.logits = logits;
    } else {
      head.values = values;
      head.ids = ids;
    }
    head.normalisers = call.output<float>(kNormalisers, {batch, steps});
    if (head.rows.count > 0) call.run(head, drl_head_workspace_bytes, drl_head_run);
  }

  int64_t columns = 0;
  float factor = 0;
  float epsilon = 0;
};

}  // namespace

Tables quantized_head() { return of_float32<QuantizedHead>(); }

}  // namespace drl::ort
