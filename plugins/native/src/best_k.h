// The k best of many numbers, best first; of equal ones, the first that came.
#pragma once

#include "kernels.h"

namespace drl {

// Arrays [k] of a caller, filled as numbers come. NaN is worse than every number.
class BestK {
 public:
  BestK(size_t k, float* values, int32_t* ids) : k_(k), values_(values), ids_(ids) {}

  void offer(float value, int32_t id) {
    if (filled_ == k_ && !better(value, values_[k_ - 1])) return;
    size_t place = filled_ < k_ ? filled_++ : k_ - 1;
    for (; place > 0 && better(value, values_[place - 1]); --place) {
      values_[place] = values_[place - 1];
      ids_[place] = ids_[place - 1];
    }
    values_[place] = value;
    ids_[place] = id;
  }

  // Whether none of these would get in, found without a branch per number.
  bool refuses(const float* values, size_t count) const {
    if (filled_ < k_) return false;
    const float worst = values_[k_ - 1];
    if (worst != worst) return false;
    int32_t hits = 0;
    for (size_t i = 0; i < count; ++i) hits += values[i] > worst ? 1 : 0;
    return hits == 0;
  }

 private:
  static bool better(float a, float b) { return a > b || (b != b && a == a); }

  size_t k_;
  float* values_;
  int32_t* ids_;
  size_t filled_ = 0;
};

}  // namespace drl
