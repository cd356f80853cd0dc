// RoutedFFNCombine: Σ over places j of gates[j] · (inner[j] · down[e_j] + down_bias[e_j]).
//
// With k = 1 (DRL_SINGLE) a slot is a token, and blocks take groups of slots as in RoutedFFNInner.
// Else a block has all slots of DRL_TOKENS tokens and goes through their experts in ascending
// order, so that each sum is formed by one block in one order.
//
// Grid: x over the columns; y over the groups of slots, or over the tokens.

#include "config.cuh"
#include "block_tile.cuh"

namespace drl {

using F = DRL_FLOAT;
using W = DRL_WEIGHT;
constexpr bool kWide = DRL_WIDE && DRL_SINGLE;
using Block = BlockTile<F, W, DRL_COLUMNS, DRL_TILES, 1, kWide ? 2 : 1, kWide ? 4 : 1>;

struct Weights {
  const F* inner;
  const float* gates;
  const W* down;
  const float* scale;
  const F* bias;
  int depth;    // of the products: the width of inner
  int columns;  // of the output

  __device__ Operands<F, W> operands(int expert) const {
    return make_operands(inner, down, expert, depth, columns);
  }

  __device__ float lowered(float sum, int expert, int column) const {
    const long long i = static_cast<long long>(expert) * columns + column;
    if (scale != nullptr) sum *= scale[i];
    if (bias != nullptr) sum += to_float(bias[i]);
    return sum;
  }
};

#if DRL_SINGLE

// One group of tokens that chose the same expert, and no other.
static __device__ void combine(const Weights& given, const int* expert_ids, int tokens, int,
                               int experts, F* output) {
  __shared__ Group<Block::kRows> group;
  __shared__ Block::Partials partials;
  const int column0 = blockIdx.x * Block::kWidth;
  if (!take_group(group, expert_ids, tokens, experts, blockIdx.y)) return;
  const int expert = group.expert;
  const int* const slots = group.slots;
  const int width = given.columns;
  if (expert == experts) {
    const int columns = min(Block::kWidth, width - column0);
    for (int i = threadIdx.x; i < group.count * columns; i += kThreads) {
      const long long slot = slots[i / columns];
      output[slot * width + column0 + i % columns] = from_float<F>(0.0f);
    }
    return;
  }
  const Operands<F, W> operands[1] = {given.operands(expert)};
  Block::run(
      partials, operands, group.count, column0, [=](int r) { return slots[r]; },
      [=](int r, int column, const Block::Sums& sums) {
        const int slot = slots[r];
        const float value = given.gates[slot] * given.lowered(sums.at(r), expert, column);
        output[static_cast<long long>(slot) * width + column] = from_float<F>(value);
      });
}

#else

// All experts of a few tokens, whose sums lie in shared memory.
static __device__ void combine(const Weights& given, const int* expert_ids, int tokens, int k,
                               int experts, F* output) {
  __shared__ Group<Block::kRows> group;
  __shared__ Block::Partials partials;
  __shared__ float shared_totals[DRL_TOKENS][Block::kWidth];
  float(*const totals)[Block::kWidth] = shared_totals;
  const int column0 = blockIdx.x * Block::kWidth;
  const int token0 = blockIdx.y * DRL_TOKENS;
  const int own = min(DRL_TOKENS, tokens - token0);
  const int* const ids = expert_ids + static_cast<long long>(token0) * k;
  const int* const slots = group.slots;
  for (int i = threadIdx.x; i < DRL_TOKENS * Block::kWidth; i += kThreads) {
    totals[i / Block::kWidth][i % Block::kWidth] = 0.0f;
  }
  count_slots(group.sizes, ids, own * k, experts);
  for (int expert = 0; expert < experts; ++expert) {
    const int size = group.sizes[expert];
    for (int first = 0; first < size; first += Block::kRows) {
      __syncthreads();  // the slots of the group before are no longer read
      if (threadIdx.x == 0) {
        group.expert = expert;
        group.first = first;
        group.count = min(Block::kRows, size - first);
      }
      __syncthreads();
      list_slots(group, ids, own * k, experts);
      const int count = group.count;
      const int slot0 = token0 * k;
      const Operands<F, W> operands[1] = {given.operands(expert)};
      Block::run(
          partials, operands, count, column0, [=](int r) { return slot0 + slots[r]; },
          [=](int r, int column, const Block::Sums& sums) {
            // A token that chose an expert twice has neighbouring rows: one thread adds them.
            const int token = slots[r] / k;
            if (r > sums.begin && slots[r - 1] / k == token) return;
            float& total = totals[token][column - column0];
            for (int next = r; next < sums.end && slots[next] / k == token; ++next) {
              const float gate = given.gates[slot0 + slots[next]];
              total += gate * given.lowered(sums.at(next), expert, column);
            }
          });
    }
  }
  __syncthreads();
  const int columns = min(Block::kWidth, given.columns - column0);
  for (int i = threadIdx.x; i < own * columns; i += kThreads) {
    const long long token = token0 + i / columns;
    output[token * given.columns + column0 + i % columns] =
        from_float<F>(totals[i / columns][i % columns]);
  }
}

#endif

}  // namespace drl

extern "C" __global__ void __launch_bounds__(256)
    drl_routed_ffn_combine(const drl::F* __restrict__ inner,      // [tokens, k, depth]
                           const int* __restrict__ expert_ids,    // [tokens, k]
                           const float* __restrict__ gates,       // [tokens, k]
                           const drl::W* __restrict__ down,       // [experts, depth, width]
#if DRL_SCALED
                           const float* __restrict__ down_scale,  // [experts, width]
#endif
#if DRL_BIASED
                           const drl::F* __restrict__ down_bias,  // [experts, width]
#endif
                           int tokens, int k, int experts, int depth, int width,
                           drl::F* __restrict__ output) {         // [tokens, width]
#if !DRL_SCALED
  const float* const down_scale = nullptr;
#endif
#if !DRL_BIASED
  const drl::F* const down_bias = nullptr;
#endif
  const drl::Weights given = {inner, gates, down, down_scale, down_bias, depth, width};
  drl::combine(given, expert_ids, tokens, k, experts, output);
}
