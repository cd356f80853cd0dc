// drl.QuantizedGather: rows of an embedding from the packed weights of the head.
#include "custom_op.h"
#include "weights.h"

namespace drl::ort {
namespace {

struct QuantizedGather {
  static constexpr const char* kName = "QuantizedGather";
  enum Input : size_t { kTokens, kWeight, kScale, kMultiplier };
  static constexpr Argument kInputs[] = {{"tokens", kInt64},
                                         {"weight", kUint8},
                                         {"scale", kFloat},
                                         {"multiplier", kUint8, kOptional}};
  static constexpr Argument kOutputs[] = {{"rows", kFloat}};

  void configure(Attributes& attributes) {
    attributes.check_layout();
    depth = attributes.count("depth");
  }

  void compute(Call& call) const {
    const Tensor tokens = call.tensor(kTokens, 2), weight = call.tensor(kWeight, 5, 6);
    if (!call.ok()) return;
    const int64_t batch = tokens.dims[0], steps = tokens.dims[1];
    // The node does not say how many columns its last panel has; what is padded is zero.
    const int64_t columns = weight.dims[1] * kPanel;
    const int64_t* ids = tokens.values<int64_t>();
    const size_t count = static_cast<size_t>(batch * steps);
    for (size_t i = 0; i < count; ++i) {
      if (ids[i] < 0 || ids[i] >= columns) {
        return call.failure().say("tokens has %" PRId64 ", not in [0, %" PRId64 ")",
                                  ids[i], columns);
      }
    }
    const drl_weights weights =
        read_weights(call, {kWeight, kScale, kMultiplier}, 1, columns, depth);
    if (weights.format == DRL_FORMAT_INT4) {
      call.failure().say("%s must have values of 8 bits and has 4", call.name(kWeight));
    }
    float* y = call.output<float>(0, {batch, steps, depth});
    const drl_execution execution = call.execution();
    if (call.ok() && count > 0) call.check(drl_gather_rows(&weights, ids, count, y, &execution));
  }

  int64_t depth = 0;
};

}  // namespace

Tables quantized_gather() { return of_float32<QuantizedGather>(); }

}  // namespace drl::ort
