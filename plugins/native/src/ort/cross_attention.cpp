// drl.CrossAttention: decoder tokens attend to all states of their source.
#include "custom_op.h"

namespace drl::ort {
namespace {

struct CrossAttention {
  static constexpr const char* kName = "CrossAttention";
  enum Input : size_t { kQ, kK, kV, kBias };
  static constexpr Argument kInputs[] = {
      {"q", kFloat}, {"k", kFloat}, {"v", kFloat}, {"bias", kFloat}};
  static constexpr Argument kOutputs[] = {{"output", kFloat}};

  void configure(Attributes& attributes) {
    heads = attributes.count("num_heads");
    scale = attributes.number("scale");
  }

  void compute(Call& call) const {
    const Tensor q = call.tensor(kQ, 3), keys = call.tensor(kK, 4);
    if (!call.ok()) return;
    const int64_t batch = q.dims[0], steps = q.dims[1], sources = keys.dims[0];
    const int64_t kv_heads = keys.dims[1], states = keys.dims[2], width = keys.dims[3];
    if (kv_heads == 0 || heads % kv_heads != 0) {
      return call.failure().say(
          "num_heads is %" PRId64 " and k has %" PRId64 " heads, no divisor of it", heads,
          kv_heads);
    }
    if (sources == 0 ? batch != 0 : batch % sources != 0) {
      return call.failure().say(
          "q has %" PRId64 " rows and k %" PRId64 " sources, no divisor of it", batch, sources);
    }
    const Shape block{sources, kv_heads, states, width}, output{batch, steps, heads * width};
    drl_cross_attention attention{};
    attention.q = call.values<float>(kQ, output);
    attention.keys = call.values<float>(kK, block);
    attention.values = call.values<float>(kV, block);
    attention.bias = call.values<float>(kBias, {sources, states});
    attention.rows = static_cast<size_t>(batch);
    attention.sources = static_cast<size_t>(sources);
    attention.tokens = static_cast<size_t>(steps);
    attention.heads = static_cast<size_t>(heads);
    attention.kv_heads = static_cast<size_t>(kv_heads);
    attention.width = static_cast<size_t>(width);
    attention.states = static_cast<size_t>(states);
    attention.scale = scale;
    attention.y = call.output<float>(0, output);
    if (attention.rows * attention.tokens > 0) {
      call.check_some(kK, keys, 2, "state");
      call.check_some(kK, keys, 3, "number in a head");
      call.run(attention, drl_cross_attention_workspace_bytes, drl_cross_attention_run);
    }
  }

  int64_t heads = 0;
  float scale = 0;
};

}  // namespace

Tables cross_attention() { return of_float32<CrossAttention>(); }

}  // namespace drl::ort
