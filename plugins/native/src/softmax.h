// Softmax in float32, compiled for every instruction set that includes it (see exponential.h).
#pragma once

#include <cmath>

#include "attention_kernels.h"
#include "exponential.h"

namespace drl {
namespace {

// e^x for x ≤ 0, with 0 where exponential stops at e^-87; NaN stays NaN.
inline float vanishing_exponential(float x) {
  const float power = exponential_within(x);
  return x < kLeastExponent ? 0.0f : power;
}

// The room that x[count] has: a multiple of a vector's lanes.
inline size_t padded_count(size_t count) {
  return (count + kFloatLanes - 1) / kFloatLanes * kFloatLanes;
}

// x[count] becomes e^(x + bias - their maximum), in place, and the total of them is returned: NaN
// where one x + bias is NaN or +infinity. Up to the next multiple of a vector's lanes x is
// overwritten.
template <class Vector>
float exponentials(float* x, const float* bias, size_t count) {
  const size_t padded = padded_count(count);
  if (bias != nullptr) {
    for (size_t i = 0; i < count; ++i) x[i] += bias[i];
  }
  for (size_t i = count; i < padded; ++i) x[i] = -INFINITY;
  Vector largest = Vector::broadcast(-INFINITY);
  for (size_t i = 0; i < padded; i += kFloatLanes) {
    largest = maximum(Vector::load(x + i), largest);
  }
  const float top = largest.highest();
  Vector sum = Vector::broadcast(0.0f);
  for (size_t i = 0; i < padded; i += kFloatLanes) {
    float powers[kFloatLanes];
    for (size_t j = 0; j < kFloatLanes; ++j) powers[j] = vanishing_exponential(x[i + j] - top);
    const Vector all = Vector::load(powers);
    all.store(x + i);
    sum = sum + all;
  }
  return sum.total();
}

// x[count] becomes its softmax, in place. One value that is NaN or +infinity makes all of them NaN.
// Up to the next multiple of a vector's lanes x is overwritten.
template <class Vector>
void softmax(float* x, size_t count) {
  const float total = exponentials<Vector>(x, nullptr, count);
  for (size_t i = 0; i < padded_count(count); ++i) x[i] = x[i] / total;
}

}  // namespace
}  // namespace drl
