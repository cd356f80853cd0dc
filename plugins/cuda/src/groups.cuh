// Slots grouped by the expert that they chose. A slot is a (token, place) pair, in the order of
// expert_ids [tokens, k]; its number is its index there.
#pragma once

#include "types.cuh"

namespace drl {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxExperts = 256;

// The slots that one block works on: up to kRows of one expert, in ascending order.
template <int kRows>
struct Group {
  int expert;  // the number of experts: slots without one; -1: no group is left for the block
  int count;
  int first;  // rank of the first slot of this group among the expert's slots
  int slots[kRows];
  int sizes[kMaxExperts + 1];
  int warp_sums[kWarps];
};

__device__ inline int expert_of(int id, int experts) {
  return id < 0 || id >= experts ? experts : id;
}

// How many slots each expert has; sizes[experts] counts those without one. Ends with a barrier.
__device__ inline void count_slots(int* sizes, const int* expert_ids, int slots, int experts) {
  for (int e = threadIdx.x; e <= experts; e += kThreads) sizes[e] = 0;
  __syncthreads();
  // A run of equal experts is added at once: all tokens may have chosen the same one.
  int last = -1;
  int run = 0;
  for (int slot = threadIdx.x; slot < slots; slot += kThreads) {
    const int expert = expert_of(expert_ids[slot], experts);
    if (expert != last) {
      if (run > 0) atomicAdd(&sizes[last], run);
      last = expert;
      run = 0;
    }
    ++run;
  }
  if (run > 0) atomicAdd(&sizes[last], run);
  __syncthreads();
}

// Finds the expert that the `index`-th group of kRows slots belongs to. Run by one warp.
template <int kRows>
__device__ inline void find_group(Group<kRows>& group, int experts, int index) {
  const int lane = threadIdx.x & 31;
  const int share = (experts + 32) / 32;  // of experts + 1 sizes, rounded up
  const int begin = min(lane * share, experts + 1);
  const int end = min(begin + share, experts + 1);
  int own = 0;
  for (int e = begin; e < end; ++e) own += (group.sizes[e] + kRows - 1) / kRows;
  int before = own;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(kFullWarp, before, distance);
    if (lane >= distance) before += other;
  }
  before -= own;
  for (int e = begin; e < end; ++e) {
    const int groups = (group.sizes[e] + kRows - 1) / kRows;
    if (index >= before && index < before + groups) {
      group.expert = e;
      group.first = (index - before) * kRows;
      group.count = min(kRows, group.sizes[e] - group.first);
    }
    before += groups;
  }
}

// Lists the slots of group.expert that have the ranks of this group. Ends with a barrier.
template <int kRows>
__device__ inline void list_slots(Group<kRows>& group, const int* expert_ids, int slots,
                                  int experts) {
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x / 32;
  const int share = (slots + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * share, slots);
  const int end = min(begin + share, slots);
  int own = 0;
  for (int slot = begin; slot < end; ++slot) {
    own += expert_of(expert_ids[slot], experts) == group.expert;
  }
  int rank = own;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(kFullWarp, rank, distance);
    if (lane >= distance) rank += other;
  }
  if (lane == 31) group.warp_sums[warp] = rank;
  __syncthreads();
  rank -= own;
  for (int w = 0; w < warp; ++w) rank += group.warp_sums[w];
  rank -= group.first;
  for (int slot = begin; slot < end && rank < kRows; ++slot) {
    if (expert_of(expert_ids[slot], experts) != group.expert) continue;
    if (rank >= 0) group.slots[rank] = slot;
    ++rank;
  }
  __syncthreads();
}

// Fills `group` with the `index`-th group of all slots; false if there are fewer.
template <int kRows>
__device__ inline bool take_group(Group<kRows>& group, const int* expert_ids, int slots,
                                  int experts, int index) {
  if (threadIdx.x == 0) group.expert = -1;
  count_slots(group.sizes, expert_ids, slots, experts);
  if (threadIdx.x < 32) find_group(group, experts, index);
  __syncthreads();
  if (group.expert < 0) return false;
  list_slots(group, expert_ids, slots, experts);
  return true;
}

}  // namespace drl
