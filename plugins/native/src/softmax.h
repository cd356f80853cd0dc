// Softmax in float32, compiled for every instruction set that includes it (see exponential.h).
#pragma once

#include <cmath>

#include "attention_kernels.h"
#include "exponential.h"

namespace drl {
namespace {

// e^x for x ≤ 0, with 0 where exponential stops at e^-87; NaN stays NaN. Asking the result, not x,
// lets compilers without masks vectorise it.
inline float vanishing_exponential(float x) {
  constexpr float kLeast = 1.7e-38f;
  const float power = exponential(x);
  return power < kLeast ? 0.0f : power;
}

// x[count] becomes its softmax, in place. Up to the next multiple of a vector's lanes x is
// overwritten. One value that is NaN or +infinity makes all of them NaN.
template <class Vector>
void softmax(float* x, size_t count) {
  const size_t padded = (count + kFloatLanes - 1) / kFloatLanes * kFloatLanes;
  for (size_t i = count; i < padded; ++i) x[i] = -INFINITY;
  Vector largest = Vector::broadcast(-INFINITY);
  for (size_t i = 0; i < padded; i += kFloatLanes) {
    largest = maximum(Vector::load(x + i), largest);
  }
  const float top = largest.highest();
  Vector sum = Vector::broadcast(0.0f);
  for (size_t i = 0; i < padded; i += kFloatLanes) {
    for (size_t j = i; j < i + kFloatLanes; ++j) x[j] = vanishing_exponential(x[j] - top);
    sum = sum + Vector::load(x + i);
  }
  const float total = sum.total();
  for (size_t i = 0; i < padded; ++i) x[i] = x[i] / total;
}

}  // namespace
}  // namespace drl
