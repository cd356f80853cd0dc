// Attention's loops for any processor. Slow, and what the others are tested against.
#include "float_loops.h"
#include "lanes.h"

namespace drl {
namespace {

struct ScalarVector {
  static constexpr size_t kRows = 1;
  static constexpr size_t kHeadRows = 1;
  static constexpr size_t kHeadColumns = 1;
  static constexpr size_t kMatrixRows = 1;
  static constexpr size_t kMatrixVectors = 1;
  static constexpr size_t kWideVectors = 1;

  float lanes[kFloatLanes];

  static ScalarVector broadcast(float value) {
    ScalarVector result;
    for (float& lane : result.lanes) lane = value;
    return result;
  }

  static ScalarVector load(const float* x) {
    ScalarVector result;
    std::memcpy(result.lanes, x, sizeof result.lanes);
    return result;
  }

  static ScalarVector load(const float* x, size_t count) {
    ScalarVector result = broadcast(0.0f);
    std::memcpy(result.lanes, x, count * sizeof(float));
    return result;
  }

  static ScalarVector load(const int8_t* x) { return load(x, kFloatLanes); }

  static ScalarVector load(const int8_t* x, size_t count) {
    ScalarVector result = broadcast(0.0f);
    for (size_t i = 0; i < count; ++i) result.lanes[i] = x[i];
    return result;
  }

  void store(float* y) const { std::memcpy(y, lanes, sizeof lanes); }
  void store(float* y, size_t count) const { std::memcpy(y, lanes, count * sizeof(float)); }

  static void prefetch(uintptr_t) {}

  const ScalarVector& in_register() const { return *this; }

  float total() const {
    float sums[kFloatLanes];
    store(sums);
    return sum_tree<kFloatLanes>(sums);
  }

  // NaN counts as nothing.
  float highest() const {
    float result = lanes[0];
    for (float lane : lanes) result = lane > result ? lane : result;
    return result;
  }

  static void totals(const ScalarVector (&vectors)[kTileSlots], float* y) {
    for (size_t i = 0; i < kTileSlots; ++i) y[i] = vectors[i].total();
  }
};

inline ScalarVector operator+(const ScalarVector& a, const ScalarVector& b) {
  ScalarVector result;
  for (size_t i = 0; i < kFloatLanes; ++i) result.lanes[i] = a.lanes[i] + b.lanes[i];
  return result;
}

inline ScalarVector operator*(const ScalarVector& a, const ScalarVector& b) {
  ScalarVector result;
  for (size_t i = 0; i < kFloatLanes; ++i) result.lanes[i] = a.lanes[i] * b.lanes[i];
  return result;
}

inline ScalarVector multiply_add(const ScalarVector& a, const ScalarVector& b,
                                 const ScalarVector& c) {
  ScalarVector result;
  for (size_t i = 0; i < kFloatLanes; ++i) {
    result.lanes[i] = std::fma(a.lanes[i], b.lanes[i], c.lanes[i]);
  }
  return result;
}

// b where a is NaN, as the vector instructions have it.
inline ScalarVector maximum(const ScalarVector& a, const ScalarVector& b) {
  ScalarVector result;
  for (size_t i = 0; i < kFloatLanes; ++i) {
    result.lanes[i] = a.lanes[i] > b.lanes[i] ? a.lanes[i] : b.lanes[i];
  }
  return result;
}

}  // namespace

const AttentionKernels& scalar_attention_kernels() {
  static constexpr AttentionKernels kernels = make_attention_kernels<ScalarVector>();
  return kernels;
}

}  // namespace drl
