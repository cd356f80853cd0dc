// ExpertRoute: the k most probable experts of every token.
//
// Grid: x over the tokens. A block multiplies one token with the router's matrix; eight experts
// are one load's columns, and as many threads as there are for them share the depth.

#include "config.cuh"
#include "groups.cuh"

namespace drl {

using F = DRL_FLOAT;
constexpr float kBlocked = -1e4f;  // score of an expert whose group is not allowed
constexpr int kOctet = 8;
constexpr int kOwn = kMaxExperts / 32;  // experts of a lane, lane, lane + 32, …

// weight[k, first … first + 7], 0 where there is no such expert.
__device__ inline void load_octet(float (&values)[kOctet], const F* weight, int k, int first,
                                  int experts, bool aligned) {
  const F* address = weight + static_cast<long long>(k) * experts + first;
  if (aligned) {
    union {
      unsigned words[sizeof(F) / 2][4];
      F elements[kOctet];
    } loaded;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(F)) / 2; ++i) {
      load_often(loaded.words[i], reinterpret_cast<const char*>(address) + 16 * i);
    }
#pragma unroll
    for (int i = 0; i < kOctet; ++i) values[i] = to_float(loaded.elements[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kOctet; ++i) {
      values[i] = first + i < experts ? to_float(address[i]) : 0.0f;
    }
  }
}

// scores[e] = Σ_k x[k] · weight[k, e], for a block; in an order that E and the width decide.
__device__ inline void project(float* scores, float (*partials)[kOctet], const F* x,
                               const F* weight, int width, int experts) {
  const int octets = (experts + kOctet - 1) / kOctet;
  const int phases = kThreads / octets;
  const int octet = threadIdx.x % octets;
  const int phase = threadIdx.x / octets;
  const bool aligned = experts % kOctet == 0 && is_aligned(weight);
  float sums[kOctet] = {};
  if (phase < phases) {
#pragma unroll 4
    for (int k = phase; k < width; k += phases) {
      float values[kOctet];
      load_octet(values, weight, k, octet * kOctet, experts, aligned);
      const float own = to_float(x[k]);
#pragma unroll
      for (int i = 0; i < kOctet; ++i) sums[i] += own * values[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kOctet; ++i) partials[threadIdx.x][i] = sums[i];
  __syncthreads();
  for (int distance = kThreads / 2; distance > 0; distance /= 2) {
    if (phase < distance && phase + distance < phases) {
#pragma unroll
      for (int i = 0; i < kOctet; ++i) {
        partials[threadIdx.x][i] += partials[threadIdx.x + distance * octets][i];
      }
    }
    __syncthreads();
  }
  if (static_cast<int>(threadIdx.x) < octets) {
#pragma unroll
    for (int i = 0; i < kOctet; ++i) scores[threadIdx.x * kOctet + i] = partials[threadIdx.x][i];
  }
  __syncthreads();
}

// Softmax over a warp's scores; places that no expert has are -infinity and become 0.
__device__ inline void softmax(float (&values)[kOwn]) {
  float largest = values[0];
#pragma unroll
  for (int i = 1; i < kOwn; ++i) largest = fmaxf(largest, values[i]);
  for (int distance = 16; distance > 0; distance /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kFullWarp, largest, distance));
  }
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    values[i] = expf(values[i] - largest);
    sum += values[i];
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kFullWarp, sum, distance);
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) values[i] = values[i] / sum;
}

// Writes the k best of a warp's probabilities, equal ones by ascending id. NaN comes last.
__device__ inline void write_best(const float (&probabilities)[kOwn], int experts, int k,
                                  int* expert_ids, float* gates) {
  const int lane = threadIdx.x & 31;
  unsigned taken = 0;
  for (int place = 0; place < k; ++place) {
    float best = -2.0f;
    float gate = 0.0f;
    int id = kMaxExperts;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float p = probabilities[i];
      const float rank = p == p ? p : -1.0f;
      if (lane + 32 * i < experts && !(taken >> i & 1) && rank > best) {
        best = rank;
        gate = p;
        id = lane + 32 * i;
      }
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      const float other = __shfl_xor_sync(kFullWarp, best, distance);
      const float other_gate = __shfl_xor_sync(kFullWarp, gate, distance);
      const int other_id = __shfl_xor_sync(kFullWarp, id, distance);
      if (other > best || (other == best && other_id < id)) {
        best = other;
        gate = other_gate;
        id = other_id;
      }
    }
    if (id % 32 == lane) taken |= 1u << id / 32;
    if (lane == 0) {
      expert_ids[place] = id;
      gates[place] = gate;
    }
  }
}

}  // namespace drl

extern "C" __global__ void __launch_bounds__(256)
    drl_expert_route(const drl::F* __restrict__ hidden,             // [tokens, width]
                     const drl::F* __restrict__ weight,             // [width, experts]
                     const float* __restrict__ prior_scale,         // []
                     const float* __restrict__ group_log_probs,     // [tokens, groups]
                     const int* __restrict__ allowed,               // [tokens, groups], 0 or 1
                     const int* __restrict__ token_mask,            // [tokens], 0 or 1
#if DRL_BIASED
                     const drl::F* __restrict__ bias,               // [experts]
#endif
                     int width, int experts, int groups, int k,
                     int* __restrict__ expert_ids,                  // [tokens, k]
                     float* __restrict__ gates) {                   // [tokens, k]
  using namespace drl;
  __shared__ float partials[kThreads][kOctet];
  __shared__ float scores[kMaxExperts];
  const long long token = blockIdx.x;
  if (!token_mask[token]) {
    for (int place = threadIdx.x; place < k; place += kThreads) {
      expert_ids[token * k + place] = -1;
      gates[token * k + place] = 0.0f;
    }
    return;
  }
  project(scores, partials, hidden + token * width, weight, width, experts);
  if (threadIdx.x >= 32) return;
  float values[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int expert = threadIdx.x + 32 * i;
    values[i] = __uint_as_float(0xff800000u);  // -infinity
    if (expert < experts) {
      const long long group = token * groups + expert / (experts / groups);
      float score = scores[expert];
#if DRL_BIASED
      score += to_float(bias[expert]);
#endif
      score += prior_scale[0] * group_log_probs[group];
      values[i] = allowed[group] ? score : kBlocked;
    }
  }
  softmax(values);
  write_best(values, experts, k, expert_ids + token * k, gates + token * k);
}
