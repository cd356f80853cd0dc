// The tokens of every expert: choices sorted by the expert they chose.
#pragma once

#include "quantized_rows.h"

namespace drl {

// An expert that was chosen, and its choices.
struct ActiveExpert {
  size_t expert;
  size_t first;
  size_t count;
};

// A choice is one (token, slot) that chose an expert. Choices are numbered by expert, and within
// an expert by token and slot.
class ExpertGroups {
 public:
  // Arrays for `choices` choices of `experts` experts at most.
  ExpertGroups(Carver& carver, size_t choices, size_t experts)
      : experts_(experts),
        places_(carver.take<size_t>(choices)),
        starts_(carver.take<size_t>(experts + 1)),
        active_(carver.take<ActiveExpert>(choices < experts ? choices : experts)),
        blocks_(carver.take<RowBlock>(choices)) {}

  // Sorts the choices; -1 is none.
  drl_status sort(const int32_t* expert_ids, size_t count, size_t tile_rows) {
    for (size_t place = 0; place < count; ++place) {
      const int32_t expert = expert_ids[place];
      if (expert < -1 || expert >= static_cast<int64_t>(experts_)) return DRL_NO_SUCH_EXPERT;
    }
    active_count_ = block_count_ = 0;
    if (count == 1) {
      take_one(expert_ids[0]);
    } else {
      sort_many(expert_ids, count);
    }
    for (size_t index = 0; index < active_count_; ++index) {
      for_blocks(active_[index], tile_rows,
                 [&](RowBlock block) { blocks_[block_count_++] = block; });
    }
    return DRL_OK;
  }

  // Experts that were chosen at all, ascending.
  size_t active_count() const { return active_count_; }
  const ActiveExpert& active(size_t index) const { return active_[index]; }
  // Where a choice stands in the expert ids.
  size_t place(size_t choice) const { return places_[choice]; }
  size_t block_count() const { return block_count_; }
  RowBlock block(size_t index) const { return blocks_[index]; }

  // Calls visit(block) for the blocks of an expert.
  template <class Visit>
  void for_blocks(const ActiveExpert& active, size_t tile_rows, const Visit& visit) const {
    for (size_t index = 0; index < ceil_div(active.count, tile_rows); ++index) {
      RowBlock block = block_of(active.count, tile_rows, index);
      block.first += active.first;
      visit(block);
    }
  }

 private:
  // One token with one choice, as in most steps of a decoder, is sorted already.
  void take_one(int32_t expert) {
    if (expert < 0) return;
    places_[0] = 0;
    active_[active_count_++] = {static_cast<size_t>(expert), 0, 1};
  }

  void sort_many(const int32_t* expert_ids, size_t count) {
    for (size_t expert = 0; expert <= experts_; ++expert) starts_[expert] = 0;
    for (size_t place = 0; place < count; ++place) {
      if (expert_ids[place] >= 0) ++starts_[expert_ids[place] + 1];
    }
    for (size_t expert = 0; expert < experts_; ++expert) {
      const size_t chosen = starts_[expert + 1];
      if (chosen > 0) active_[active_count_++] = {expert, starts_[expert], chosen};
      starts_[expert + 1] += starts_[expert];
    }
    // Each start moves up to where the next expert's choices begin.
    for (size_t place = 0; place < count; ++place) {
      if (expert_ids[place] >= 0) places_[starts_[expert_ids[place]]++] = place;
    }
  }

  size_t experts_;
  size_t* places_;  // [choices]
  size_t* starts_;  // [experts + 1], the first choice of every expert
  ActiveExpert* active_;
  RowBlock* blocks_;
  size_t active_count_ = 0;
  size_t block_count_ = 0;
};

}  // namespace drl
