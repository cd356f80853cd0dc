// drl.CrossAttention and drl.QuantizedCrossAttention: decoder tokens attend to all states of their
// source, whose keys and values are float or int8.
#include "states.h"

namespace drl::ort {
namespace {

struct FloatSource : FloatStates {
  using Job = drl_cross_attention;
  static constexpr const char* kName = "CrossAttention";
  static constexpr auto kWorkspace = drl_cross_attention_workspace_bytes;
  static constexpr auto kRun = drl_cross_attention_run;
};

struct Int8Source : Int8States {
  using Job = drl_quantized_cross_attention;
  static constexpr const char* kName = "QuantizedCrossAttention";
  static constexpr auto kWorkspace = drl_quantized_cross_attention_workspace_bytes;
  static constexpr auto kRun = drl_quantized_cross_attention_run;
};

template <class Source>
struct CrossAttention {
  using Element = typename Source::Element;
  static constexpr const char* kName = Source::kName;
  enum Input : size_t { kQ, kK, kV, kBias };
  static constexpr Argument kInputs[] = {
      {"q", kFloat}, {"k", Source::kType}, {"v", Source::kType}, {"bias", kFloat}};
  static constexpr Argument kOutputs[] = {{"output", kFloat}};

  void configure(Attributes& attributes) {
    heads = attributes.count("num_heads");
    scale = attributes.number("scale");
  }

  void compute(Call& call) const {
    const Tensor q = call.tensor(kQ, 3), keys = call.tensor(kK, 4);
    if (!call.ok()) return;
    const int64_t batch = q.dims[0], steps = q.dims[1], sources = keys.dims[0];
    const int64_t kv_heads = keys.dims[1], states = keys.dims[2];
    const int64_t width = head_width<Element>(call, kK, keys);
    if (!call.ok()) return;
    if (kv_heads == 0 || heads % kv_heads != 0) {
      return call.failure().say(
          "num_heads is %" PRId64 " and k has %" PRId64 " heads, no divisor of it", heads,
          kv_heads);
    }
    if (sources == 0 ? batch != 0 : batch % sources != 0) {
      return call.failure().say(
          "q has %" PRId64 " rows and k %" PRId64 " sources, no divisor of it", batch, sources);
    }
    const Shape block{sources, kv_heads, states, keys.dims[3]}, output{batch, steps, heads * width};
    typename Source::Job attention{};
    attention.q = call.values<float>(kQ, output);
    attention.keys = call.values<Element>(kK, block);
    attention.values = call.values<Element>(kV, block);
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
      call.run(attention, Source::kWorkspace, Source::kRun);
    }
  }

  int64_t heads = 0;
  float scale = 0;
};

}  // namespace

Tables cross_attention() { return of_float32<CrossAttention<FloatSource>>(); }

Tables quantized_cross_attention() { return of_float32<CrossAttention<Int8Source>>(); }

}  // namespace drl::ort
