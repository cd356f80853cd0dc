// Keys or values of encoder states as rows of int8, head by head.
#include "attention_kernels.h"
#include "parallel_for.h"
#include "task_size.h"

namespace drl {
namespace {

bool possible(const drl_quantize_states& call) { return call.kv_heads != 0 && call.width != 0; }

drl_status run(const drl_quantize_states& call, const drl_execution& execution) {
  const AttentionKernels* kernels = attention_kernels_for(execution.isa);
  if (kernels == nullptr) return DRL_ISA_UNAVAILABLE;
  if (call.rows == 0 || call.states == 0) return DRL_OK;
  if (!possible(call) || call.x == nullptr || call.y == nullptr) return DRL_BAD_ARGUMENT;
  const size_t heads = call.kv_heads, width = call.width;
  const drl_execution serial{execution.isa, nullptr, nullptr};
  const bool few = call.rows * call.states * heads * width < kSerialValues;
  parallel_for(few ? serial : execution, call.rows * heads, [&](size_t task) {
    const float* x = call.x + (task / heads * call.states * heads + task % heads) * width;
    int8_t* y = call.y + task * call.states * row_width<int8_t>(width);
    for (size_t state = 0; state < call.states; ++state) {
      kernels->quantize_state(x, width, y);
      x += heads * width;
      y += row_width<int8_t>(width);
    }
  });
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_quantize_states_workspace_bytes(const drl_quantize_states*) { return 0; }

extern "C" drl_status drl_quantize_states_run(const drl_quantize_states* states, drl_workspace,
                                              const drl_execution* execution) {
  if (states == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*states, *execution);
}
