// What a head makes of its logits: the k largest of every row, and the logarithm of the sum of
// their exponentials.
//
// Logits come in chunks of kChunkColumns. Chunks that lie side by side make a group, which one task
// looks at; every group has a list of each row's candidates.
#pragma once

#include <atomic>

#include "best_k.h"
#include "task_size.h"
#include "workspace.h"

namespace drl {

// Columns whose logits are looked at together. It decides the order of the sums, so it is the same
// however many threads there are.
constexpr size_t kChunkColumns = kSumColumns;

// What is wanted, as in drl_head.
struct RankedRows {
  size_t rows;
  size_t columns;
  size_t k;
  float* values;       // [rows, k]
  int32_t* ids;        // [rows, k]
  float* normalisers;  // [rows]
};

// Consecutive columns.
struct Columns {
  size_t first;
  size_t count;
};

class RankedLogits {
 public:
  RankedLogits(Carver& carver, const RankedRows& out)
      : out_(out),
        chunks_(ceil_div(out.columns, kChunkColumns)),
        sums_(carver.take<ExponentialSum>(out.rows * chunks_)),
        values_(carver.take<float>(lists() * out.k)),
        ids_(carver.take<int32_t>(lists() * out.k)),
        lists_(carver.take<BestK>(lists())),
        bars_(carver.take<std::atomic<float>>(out.rows)) {}

  size_t chunks() const { return chunks_; }

  Columns chunk(size_t index) const {
    const size_t first = index * kChunkColumns, left = out_.columns - first;
    return {first, left < kChunkColumns ? left : kChunkColumns};
  }

  // Empties the lists of so many groups, kMostTasks at most. It comes before the tasks, since a
  // caller's threads may fail to run some of them.
  void start(size_t groups) const;

  // Takes a row's logits of one chunk, which is of this group.
  void add(const Kernels& kernels, size_t group, size_t row, size_t chunk,
           const float* logits) const;

  // Writes what is wanted. Groups come in the order of their columns, so equal values keep theirs.
  void finish(size_t groups) const;

 private:
  size_t lists() const {
    return out_.k == 0 ? 0 : (chunks_ < kMostTasks ? chunks_ : kMostTasks) * out_.rows;
  }
  BestK& list(size_t group, size_t row) const { return lists_[group * out_.rows + row]; }
  void offer(BestK& best, size_t row, float largest, const float* logits, Columns columns) const;
  float normaliser(const ExponentialSum* sums) const;

  RankedRows out_;
  size_t chunks_;
  ExponentialSum* sums_;      // [rows][chunks]
  float* values_;             // [groups][rows][k], the candidates of every group
  int32_t* ids_;
  BestK* lists_;              // [groups][rows]
  std::atomic<float>* bars_;  // [rows], a number that k others have reached, or NaN
};

}  // namespace drl
