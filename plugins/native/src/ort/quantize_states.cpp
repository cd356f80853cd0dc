// drl.QuantizeStates: keys or values of encoder states as rows of int8, head by head.
#include "../attention_kernels.h"
#include "custom_op.h"

namespace drl::ort {
namespace {

struct QuantizeStates {
  static constexpr const char* kName = "QuantizeStates";
  enum Input : size_t { kX };
  static constexpr Argument kInputs[] = {{"x", kFloat}};
  static constexpr Argument kOutputs[] = {{"rows", kInt8}};

  void configure(Attributes& attributes) {
    kv_heads = attributes.count("kv_heads");
    head_dim = attributes.count("head_dim");
  }

  void compute(Call& call) const {
    const Tensor x = call.tensor(kX, 3);
    if (!call.ok()) return;
    const int64_t batch = x.dims[0], states = x.dims[1];
    drl_quantize_states job{};
    job.rows = static_cast<size_t>(batch);
    job.states = static_cast<size_t>(states);
    job.kv_heads = static_cast<size_t>(kv_heads);
    job.width = static_cast<size_t>(head_dim);
    job.x = call.values<float>(kX, x.with_last(kv_heads * head_dim));
    const int64_t width = static_cast<int64_t>(row_width<int8_t>(job.width));
    job.y = call.output<int8_t>(0, {batch, kv_heads, states, width});
    call.run(job, drl_quantize_states_workspace_bytes, drl_quantize_states_run);
  }

  int64_t kv_heads = 0;
  int64_t head_dim = 0;
};

}  // namespace

Tables quantize_states() { return of_float32<QuantizeStates>(); }

}  // namespace drl::ort
