// The tokens of every expert: choices sorted by the expert they chose.
#pragma once

#include "quantized_rows.h"

namespace drl {

// A choice is one (token, slot) that chose an expert. Choices are numbered by expert, and within
// an expert by token and slot.
class ExpertGroups {
 public:
  // Arrays for `choices` choices of `experts` experts at most.
  ExpertGroups(Carver& carver, size_t choices, size_t experts)
      : experts_(experts),
        places_(carver.take<size_t>(choices)),
        starts_(carver.take<size_t>(experts + 1)),
        active_(carver.take<size_t>(experts)),
        blocks_(carver.take<RowBlock>(choices)) {}

  // Sorts the choices; -1 is none.
  drl_status sort(const int32_t* expert_ids, size_t count, size_t tile_rows) {
    for (size_t expert = 0; expert <= experts_; ++expert) starts_[expert] = 0;
    for (size_t place = 0; place < count; ++place) {
      const int32_t expert = expert_ids[place];
      if (expert < -1 || expert >= static_cast<int64_t>(experts_)) return DRL_NO_SUCH_EXPERT;
      if (expert >= 0) ++starts_[expert + 1];
    }
    active_count_ = 0;
    for (size_t expert = 0; expert < experts_; ++expert) {
      if (starts_[expert + 1] > 0) active_[active_count_++] = expert;
      starts_[expert + 1] += starts_[expert];
    }
    for (size_t place = 0; place < count; ++place) {
      // Each start moves up to where the next expert's choices begin, and is moved back below.
      if (expert_ids[place] >= 0) places_[starts_[expert_ids[place]]++] = place;
    }
    for (size_t expert = experts_; expert > 0; --expert) starts_[expert] = starts_[expert - 1];
    starts_[0] = 0;
    list_blocks(tile_rows);
    return DRL_OK;
  }

  size_t active_count() const { return active_count_; }
  size_t active(size_t index) const { return active_[index]; }
  // Where a choice stands in the expert ids.
  size_t place(size_t choice) const { return places_[choice]; }
  size_t block_count() const { return block_count_; }
  RowBlock block(size_t index) const { return blocks_[index]; }
  size_t choices_of(size_t expert) const { return starts_[expert + 1] - starts_[expert]; }

  // Calls visit(block) for the blocks of an expert.
  template <class Visit>
  void for_blocks(size_t expert, size_t tile_rows, const Visit& visit) const {
    const size_t rows = choices_of(expert);
    for (size_t index = 0; index < ceil_div(rows, tile_rows); ++index) {
      RowBlock block = block_of(rows, tile_rows, index);
      block.first += starts_[expert];
      visit(block);
    }
  }

 private:
  void list_blocks(size_t tile_rows) {
    block_count_ = 0;
    for (size_t index = 0; index < active_count_; ++index) {
      for_blocks(active_[index], tile_rows,
                 [&](RowBlock block) { blocks_[block_count_++] = block; });
    }
  }

  size_t experts_;
  size_t* places_;  // [choices]
  size_t* starts_;  // [experts + 1], the first choice of every expert
  size_t* active_;  // experts that were chosen at all
  RowBlock* blocks_;
  size_t active_count_ = 0;
  size_t block_count_ = 0;
};

}  // namespace drl
