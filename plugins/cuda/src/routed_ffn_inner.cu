// RoutedFFNInner: act(x · up[e]), or act(x · gate[e]) ⊙ (x · up[e]), for every slot.
//
// Grid: x over the columns, y over the groups of slots. There are at most
// slots / kRows + experts + 1 groups.

#include "config.cuh"
#include "activations.cuh"
#include "block_tile.cuh"

namespace drl {

using F = DRL_FLOAT;
using W = DRL_WEIGHT;
constexpr int kMatrices = DRL_GATED ? 2 : 1;
using Block = BlockTile<F, W, DRL_COLUMNS, DRL_TILES, kMatrices, DRL_WIDE ? 2 : 1,
                        DRL_WIDE ? 4 / kMatrices : 1>;

__device__ inline float add_bias(float sum, const F* bias, long long index) {
  return bias == nullptr ? sum : sum + to_float(bias[index]);
}

__device__ inline float times_scale(float sum, const float* scale, long long index) {
  return scale == nullptr ? sum : sum * scale[index];
}

}  // namespace drl

extern "C" __global__ void __launch_bounds__(256)
    drl_routed_ffn_inner(const drl::F* __restrict__ hidden,         // [tokens, width]
                         const int* __restrict__ expert_ids,        // [tokens, k]
                         const drl::W* __restrict__ up,             // [experts, width, inner]
#if DRL_GATED
                         const drl::W* __restrict__ gate,           // [experts, width, inner]
#endif
#if DRL_SCALED
                         const float* __restrict__ up_scale,        // [experts, inner]
#if DRL_GATED
                         const float* __restrict__ gate_scale,      // [experts, inner]
#endif
#endif
#if DRL_BIASED
                         const drl::F* __restrict__ up_bias,        // [experts, inner]
#if DRL_GATED
                         const drl::F* __restrict__ gate_bias,      // [experts, inner]
#endif
#endif
                         int tokens, int k, int experts, int width, int inner,
                         drl::F* __restrict__ output) {             // [tokens, k, inner]
  using namespace drl;
#if !DRL_GATED
  const W* const gate = nullptr;
#endif
#if !DRL_SCALED
  const float *const up_scale = nullptr, *const gate_scale = nullptr;
#elif !DRL_GATED
  const float* const gate_scale = nullptr;
#endif
#if !DRL_BIASED
  const F *const up_bias = nullptr, *const gate_bias = nullptr;
#elif !DRL_GATED
  const F* const gate_bias = nullptr;
#endif
  __shared__ Group<Block::kRows> group;
  __shared__ Block::Partials partials;
  const int column0 = blockIdx.x * Block::kWidth;
  if (!take_group(group, expert_ids, tokens * k, experts, blockIdx.y)) return;
  const int expert = group.expert;
  const int* const slots = group.slots;

  if (expert == experts) {
    const int columns = min(Block::kWidth, inner - column0);
    for (int i = threadIdx.x; i < group.count * columns; i += kThreads) {
      const long long slot = slots[i / columns];
      output[slot * inner + column0 + i % columns] = from_float<F>(0.0f);
    }
    return;
  }
  Operands<F, W> given[kMatrices];
  given[0] = make_operands(hidden, up, expert, width, inner);
  if constexpr (kMatrices == 2) given[1] = make_operands(hidden, gate, expert, width, inner);
  const long long offset = static_cast<long long>(expert) * inner;
  Block::run(
      partials, given, group.count, column0, [=](int r) { return slots[r] / k; },
      [=](int r, int column, const Block::Sums& sums) {
        constexpr Activation kAct = Activation::DRL_ACTIVATION;
        const long long i = offset + column;
        float value = add_bias(times_scale(sums.at(r, 0), up_scale, i), up_bias, i);
        if constexpr (kMatrices == 2) {
          const float opened = add_bias(times_scale(sums.at(r, 1), gate_scale, i), gate_bias, i);
          value = activate<kAct>(opened) * value;
        } else {
          value = activate<kAct>(value);
        }
        output[static_cast<long long>(slots[r]) * inner + column] = from_float<F>(value);
      });
}
