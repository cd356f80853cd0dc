// drl.CachedAttention and drl.QuantizedCachedAttention: causal self-attention of new tokens over a
// key-value cache of float or of int8.
#include "states.h"

namespace drl::ort {
namespace {

struct FloatCache : FloatStates {
  using Job = drl_cached_attention;
  static constexpr const char* kName = "CachedAttention";
  static constexpr auto kWorkspace = drl_cached_attention_workspace_bytes;
  static constexpr auto kRun = drl_cached_attention_run;
};

struct Int8Cache : Int8States {
  using Job = drl_quantized_cached_attention;
  static constexpr const char* kName = "QuantizedCachedAttention";
  static constexpr auto kWorkspace = drl_quantized_cached_attention_workspace_bytes;
  static constexpr auto kRun = drl_quantized_cached_attention_run;
};

template <class Cache>
struct CachedAttention {
  using Element = typename Cache::Element;
  static constexpr const char* kName = Cache::kName;
  enum Input : size_t { kQ, kK, kV, kPastK, kPastV, kLengths, kBias };
  static constexpr Argument kInputs[] = {{"q", kFloat, kRequired, true},
                                         {"k", kFloat, kRequired, true},
                                         {"v", kFloat, kRequired, true},
                                         {"past_k", Cache::kType, kRequired, true},
                                         {"past_v", Cache::kType, kRequired, true},
                                         {"lengths", kInt32},
                                         {"bias", kFloat, kOptional, true}};
  static constexpr Argument kOutputs[] = {{"output", kFloat, kRequired, true},
                                          {"present_k", Cache::kType, kRequired, true},
                                          {"present_v", Cache::kType, kRequired, true}};

  void configure(Attributes& attributes) {
    heads = attributes.count("num_heads");
    scale = attributes.number("scale");
  }

  void compute(Call& call) const {
    const Tensor q = call.tensor(kQ, 3), past = call.tensor(kPastK, 4);
    if (!call.ok()) return;
    const int64_t batch = q.dims[0], steps = q.dims[1];
    const int64_t kv_heads = past.dims[1], capacity = past.dims[2];
    const int64_t width = head_width<Element>(call, kPastK, past);
    if (!call.ok()) return;
    if (kv_heads == 0 || heads % kv_heads != 0) {
      return call.failure().say(
          "num_heads is %" PRId64 " and past_k has %" PRId64 " heads, no divisor of it", heads,
          kv_heads);
    }
    const Shape cache{batch, kv_heads, capacity, past.dims[3]};
    const Shape fresh{batch, steps, kv_heads * width};
    typename Cache::Job attention{};
    attention.q = call.values<float>(kQ, {batch, steps, heads * width});
    attention.k = call.values<float>(kK, fresh);
    attention.v = call.values<float>(kV, fresh);
    const Element* past_k = call.values<Element>(kPastK, cache);
    const Element* past_v = call.values<Element>(kPastV, cache);
    attention.lengths = call.values<int32_t>(kLengths, {batch});
    const int64_t slots = steps + longest(call, attention.lengths, batch, steps, capacity);
    const Tensor bias = call.tensor(kBias);
    if (bias.given) {
      attention.bias_rows = bias.rank > 0 && bias.dims[0] == 1 ? 1 : static_cast<size_t>(batch);
      attention.bias = call.values<float>(
          kBias, {static_cast<int64_t>(attention.bias_rows), heads, steps, slots});
    }
    attention.rows = static_cast<size_t>(batch);
    attention.tokens = static_cast<size_t>(steps);
    attention.heads = static_cast<size_t>(heads);
    attention.kv_heads = static_cast<size_t>(kv_heads);
    attention.width = static_cast<size_t>(width);
    attention.capacity = static_cast<size_t>(capacity);
    attention.scale = scale;
    attention.slots = static_cast<size_t>(slots);
    attention.y = call.output<float>(0, {batch, steps, heads * width});
    attention.keys = continued(call, 1, cache, past_k);
    attention.values = continued(call, 2, cache, past_v);
    if (attention.rows * attention.tokens > 0) {
      call.check_some(kPastK, past, 3, "number in a head");
      call.run(attention, Cache::kWorkspace, Cache::kRun);
    }
  }

  int64_t heads = 0;
  float scale = 0;

 private:
  // The most tokens that a row has in the cache, where there is room for the new ones.
  static int64_t longest(Call& call, const int32_t* lengths, int64_t batch, int64_t steps,
                         int64_t capacity) {
    int64_t found = 0;
    for (int64_t row = 0; call.ok() && row < batch; ++row) {
      if (lengths[row] < 0) {
        call.failure().say("lengths has %d, and there are no fewer tokens than none",
                           lengths[row]);
      } else if (lengths[row] > capacity - steps) {
        call.failure().say("%d tokens and %" PRId64 " new token%s, and the cache has %" PRId64
                           " slot%s",
                           lengths[row], steps, steps == 1 ? "" : "s", capacity,
                           capacity == 1 ? "" : "s");
      } else if (lengths[row] > found) {
        found = lengths[row];
      }
    }
    return found;
  }

  // The cache to write to: the past itself where the caller gave one memory for both.
  static Element* continued(Call& call, size_t output, const Shape& shape, const Element* past) {
    Element* present = call.output<Element>(output, shape);
    if (call.ok() && present != past && shape.count() > 0) {
      std::memcpy(present, past, shape.count() * sizeof *past);
    }
    return present;
  }
};

}  // namespace

Tables cached_attention() { return of_any_float<CachedAttention<FloatCache>>(); }

Tables quantized_cached_attention() { return of_float32<CachedAttention<Int8Cache>>(); }

}  // namespace drl::ort
