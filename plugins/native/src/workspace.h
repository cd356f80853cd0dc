// Cuts the memory that a caller lends into arrays.
#pragma once

#include "kernels.h"

namespace drl {

// Hands out arrays one after the other. Without memory it only adds up what they would take, so
// the same code answers how large a workspace must be.
class Carver {
 public:
  Carver() = default;
  explicit Carver(drl_workspace workspace) : base_(static_cast<uint8_t*>(workspace.data)) {
    const size_t misaligned = reinterpret_cast<uintptr_t>(base_) % kAlignment;
    if (base_ != nullptr && misaligned != 0) used_ = kAlignment - misaligned;
  }

  template <class T>
  T* take(size_t count) {
    uint8_t* start = base_ == nullptr ? nullptr : base_ + used_;
    used_ += ceil_div(count * sizeof(T), kAlignment) * kAlignment;
    return reinterpret_cast<T*>(start);
  }

  // Enough for memory of any alignment.
  size_t bytes() const { return used_ + kAlignment; }

 private:
  static constexpr size_t kAlignment = 64;
  uint8_t* base_ = nullptr;
  size_t used_ = 0;
};

}  // namespace drl
