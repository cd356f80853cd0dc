// The k best of many numbers, best first; of equal ones, the first that came.
#pragma once

#include "kernels.h"

namespace drl {

// Arrays [k] of a caller, filled as numbers come. NaN is worse than every number.
class BestK {
 public:
  BestK(size_t k, float* values, int32_t* ids) : k_(k), values_(values), ids_(ids) {}

  void offer(float value, int32_t id) {
    if (full() && !better(value, values_[k_ - 1])) return;
    size_t place = full() ? k_ - 1 : filled_++;
    for (; place > 0 && better(value, values_[place - 1]); --place) {
      values_[place] = values_[place - 1];
      ids_[place] = ids_[place - 1];
    }
    values_[place] = value;
    ids_[place] = id;
  }

  // Offers all that another list has kept.
  void offer_all(const BestK& other) {
    for (size_t i = 0; i < other.filled_; ++i) offer(other.values_[i], other.ids_[i]);
  }

  bool full() const { return filled_ == k_; }
  // The worst one of a full list.
  float worst() const { return values_[k_ - 1]; }
  // Whether numbers of which none is larger than `largest` would all stay outside.
  bool refuses(float largest) const { return full() && largest <= worst(); }

 private:
  static bool better(float a, float b) { return a > b || (b != b && a == a); }

  size_t k_;
  float* values_;
  int32_t* ids_;
  size_t filled_ = 0;
};

}  // namespace drl
