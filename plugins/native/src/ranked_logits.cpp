#include "ranked_logits.h"

#include <cmath>
#include <new>

#include "exponential.h"

namespace drl {

void RankedLogits::start(size_t groups) const {
  if (out_.k == 0) return;
  for (size_t row = 0; row < out_.rows; ++row) new (bars_ + row) std::atomic<float>(NAN);
  for (size_t group = 0; group < groups; ++group) {
    for (size_t row = 0; row < out_.rows; ++row) {
      const size_t place = (group * out_.rows + row) * out_.k;
      new (&list(group, row)) BestK(out_.k, values_ + place, ids_ + place);
    }
  }
}

void RankedLogits::add(const Kernels& kernels, size_t group, size_t row, size_t index,
                       const float* logits) const {
  const Columns columns = chunk(index);
  const ExponentialSum sum = kernels.sum_exponentials(logits, columns.count);
  sums_[row * chunks_ + index] = sum;
  if (out_.k > 0) offer(list(group, row), row, sum.max, logits, columns);
}

void RankedLogits::finish(size_t groups) const {
  for (size_t row = 0; row < out_.rows; ++row) {
    if (out_.k > 0) {
      BestK best(out_.k, out_.values + row * out_.k, out_.ids + row * out_.k);
      for (size_t group = 0; group < groups; ++group) best.offer_all(list(group, row));
    }
    out_.normalisers[row] = normaliser(sums_ + row * chunks_);
  }
}

// The bar spares a group the search among what other groups have beaten already. Which groups come
// first is left to the threads, and changes only how much is spared.
void RankedLogits::offer(BestK& best, size_t row, float largest, const float* logits,
                         Columns columns) const {
  std::atomic<float>& bar = bars_[row];
  const float reached = bar.load(std::memory_order_relaxed);
  if (largest < reached || best.refuses(largest)) return;
  for (size_t i = 0; i < columns.count; ++i) {
    if (!(logits[i] < reached)) best.offer(logits[i], static_cast<int32_t>(columns.first + i));
  }
  if (best.full() && !(best.worst() <= reached)) {
    bar.store(best.worst(), std::memory_order_relaxed);
  }
}

// log Σ exp, from the sums of all chunks in order.
float RankedLogits::normaliser(const ExponentialSum* sums) const {
  float largest = -INFINITY;
  bool nan = false;
  for (size_t i = 0; i < chunks_; ++i) {
    largest = sums[i].max > largest ? sums[i].max : largest;
    nan = nan || sums[i].sum != sums[i].sum;
  }
  if (nan) return NAN;
  if (std::isinf(largest)) return largest;
  double total = 0.0;
  for (size_t i = 0; i < chunks_; ++i) {
    total += static_cast<double>(sums[i].sum) * exponential(sums[i].max - largest);
  }
  return static_cast<float>(largest + std::log(total));
}

}  // namespace drl
