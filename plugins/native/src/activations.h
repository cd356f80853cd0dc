// Activation functions, compiled for every instruction set that includes them; see exponential.h.
#pragma once

#include "exponential.h"
#include "kernels.h"

namespace drl {
namespace {

struct Identity {
  static float apply(float x) { return x; }
};

struct Relu {
  // Written so that NaN stays NaN.
  static float apply(float x) { return x < 0.0f ? 0.0f : x; }
};

struct Silu {
  static float apply(float x) { return x / (1.0f + exponential(-x)); }
};

struct GeluTanh {
  // ½(1 + tanh u) is the logistic function of 2u.
  static float apply(float x) {
    const float u = 0.7978845608f * (x + 0.044715f * (x * x * x));
    return x / (1.0f + exponential(-2.0f * u));
  }
};

struct Gelu {
  // erf by Abramowitz and Stegun 7.1.26, to 1.5e-7.
  static float apply(float x) {
    const float z = from_bits(to_bits(x) & 0x7FFFFFFF) * 0.7071067812f;
    const float t = 1.0f / (1.0f + 0.3275911f * z);
    float p = 1.061405429f;
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const float tail = 0.5f * (p * t * exponential(-z * z));  // 1 - Φ(|x|)
    return x * (x < 0.0f ? tail : 1.0f - tail);
  }
};

template <class Function>
void activate_with(const float* x, const float* up, size_t count, float* y) {
  if (up == nullptr) {
    for (size_t i = 0; i < count; ++i) y[i] = Function::apply(x[i]);
  } else {
    for (size_t i = 0; i < count; ++i) y[i] = Function::apply(x[i]) * up[i];
  }
}

void activate(drl_activation activation, const float* x, const float* up, size_t count, float* y) {
  switch (activation) {
    case DRL_ACTIVATION_RELU: return activate_with<Relu>(x, up, count, y);
    case DRL_ACTIVATION_GELU: return activate_with<Gelu>(x, up, count, y);
    case DRL_ACTIVATION_GELU_TANH: return activate_with<GeluTanh>(x, up, count, y);
    case DRL_ACTIVATION_SILU: return activate_with<Silu>(x, up, count, y);
    case DRL_ACTIVATION_NONE: return activate_with<Identity>(x, up, count, y);
  }
}

}  // namespace
}  // namespace drl
