// drl.EncoderAttention: the tokens of a source attend to each other.
#include "custom_op.h"
#include "fast_products.h"

namespace drl::ort {
namespace {

struct EncoderAttention {
  static constexpr const char* kName = "EncoderAttention";
  enum Input : size_t { kQ, kK, kV, kLengths, kBias };
  static constexpr Argument kInputs[] = {{"q", kFloat},
                                         {"k", kFloat},
                                         {"v", kFloat},
                                         {"lengths", kInt32},
                                         {"bias", kFloat, kOptional}};
  static constexpr Argument kOutputs[] = {{"output", kFloat}};

  void configure(Attributes& attributes) {
    heads = attributes.count("num_heads");
    scale = attributes.number("scale");
  }

  void compute(Call& call) const {
    const Tensor q = call.tensor(kQ, 3), k = call.tensor(kK, 3), bias = call.tensor(kBias);
    if (!call.ok()) return;
    const int64_t batch = q.dims[0], tokens = q.dims[1];
    const int64_t width = q.dims[2] / heads, kv_heads = width == 0 ? 0 : k.dims[2] / width;
    if (width == 0 || q.dims[2] % heads != 0) {
      return call.failure().say("q has %" PRId64 " numbers per token, and num_heads is %" PRId64
                                ", no divisor of it", q.dims[2], heads);
    }
    if (kv_heads == 0 || k.dims[2] % width != 0 || heads % kv_heads != 0) {
      return call.failure().say("k has %" PRId64 " numbers per token, and a head of q has %" PRId64
                                "; num_heads is %" PRId64, k.dims[2], width, heads);
    }
    const Shape shape{batch, tokens, heads * width}, states{batch, tokens, kv_heads * width};
    drl_encoder_attention attention{};
    attention.q = call.values<float>(kQ, shape);
    attention.k = call.values<float>(kK, states);
    attention.v = call.values<float>(kV, states);
    attention.lengths = call.values<int32_t>(kLengths, {batch});
    check_lengths(call, attention.lengths, batch, tokens);
    if (bias.given) {
      const int64_t distances = bias.rank > 0 ? bias.dims[0] : 0;
      attention.bias = call.values<float>(kBias, {distances, heads});
      attention.distances = static_cast<size_t>(distances);
      if (call.ok() && distances % 2 == 0) {
        call.failure().say("bias has %" PRId64 " distances; their number must be odd", distances);
      }
    }
    attention.rows = static_cast<size_t>(batch);
    attention.tokens = static_cast<size_t>(tokens);
    attention.heads = static_cast<size_t>(heads);
    attention.kv_heads = static_cast<size_t>(kv_heads);
    attention.width = static_cast<size_t>(width);
    attention.scale = scale;
    attention.y = call.output<float>(0, shape);
    if (batch * tokens > 0) {
      call.run(attention, drl_encoder_attention_workspace_bytes, drl_encoder_attention_run);
    }
  }

  int64_t heads = 0;
  float scale = 0;

 private:
  static void check_lengths(Call& call, const int32_t* lengths, int64_t batch, int64_t tokens) {
    for (int64_t row = 0; call.ok() && row < batch; ++row) {
      if (lengths[row] < 0 || lengths[row] > tokens) {
        call.failure().say("lengths has %d, and rows have %" PRId64 " token%s", lengths[row],
                           tokens, tokens == 1 ? "" : "s");
      }
    }
  }
};

}  // namespace

Tables encoder_attention() {
  return has_fast_products() ? of_float32<EncoderAttention>() : Tables{};
}

}  // namespace drl::ort
