// drl.Head: logits, or the largest of them, and the logarithm of the sum of all, from float weights.
#include "custom_op.h"
#include "fast_products.h"

namespace drl::ort {
namespace {

struct Head {
  static constexpr const char* kName = "Head";
  enum Input : size_t { kX, kWeight, kCandidates, kBias };
  static constexpr Argument kInputs[] = {
      {"x", kFloat}, {"weight", kFloat}, {"candidates", kInt64}, {"bias", kFloat, kOptional}};
  enum Output : size_t { kLogits, kValues, kIds, kNormalisers };
  static constexpr Argument kOutputs[] = {
      {"logits", kFloat}, {"values", kFloat}, {"ids", kInt32}, {"normalisers", kFloat}};

  void configure(Attributes& attributes) { factor = attributes.number("factor"); }

  void compute(Call& call) const {
    const Tensor x = call.tensor(kX, 3), weight = call.tensor(kWeight, 2);
    const int64_t* candidates = call.values<int64_t>(kCandidates, {1});
    if (!call.ok()) return;
    call.check_some(kWeight, weight, 0, "column");
    call.check_some(kWeight, weight, 1, "number in a column");
    if (!call.ok()) return;
    const int64_t batch = x.dims[0], steps = x.dims[1], depth = x.dims[2], k = *candidates;
    const int64_t columns = weight.dims[0];
    if (k < 0 || k > columns) {
      return call.failure().say("candidates must be in [0, %" PRId64 "] and is %" PRId64,
                                columns, k);
    }
    drl_float_head head{};
    head.rows = static_cast<size_t>(batch * steps);
    head.depth = static_cast<size_t>(depth);
    head.columns = static_cast<size_t>(columns);
    head.x = x.values<float>();
    head.weight = call.values<float>(kWeight, {columns, depth});
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
    if (head.rows > 0) call.run(head, drl_float_head_workspace_bytes, drl_float_head_run);
  }

  float factor = 0;
};

}  // namespace

Tables head() { return has_fast_products() ? of_float32<Head>() : Tables{}; }

}  // namespace drl::ort
