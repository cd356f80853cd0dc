// The activations of feed-forward layers, in fp32: those of drl.plugins.ops.activations.
#pragma once

#include "types.cuh"

namespace drl {

enum class Activation { kRelu, kSilu, kGelu, kGeluTanh };

template <Activation kActivation>
__device__ inline float activate(float x) {
  if constexpr (kActivation == Activation::kRelu) {
    return x < 0.0f ? 0.0f : x;  // NaN stays
  } else if constexpr (kActivation == Activation::kSilu) {
    return x / (1.0f + expf(-x));
  } else if constexpr (kActivation == Activation::kGelu) {
    return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
  } else {
    const float inner = 0.79788456080286536f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + tanhf(inner));
  }
}

}  // namespace drl
