// Packed int8 weights: one block of memory that is written once and may be mapped from a file.
//
// Layout version 1, little-endian, every part a multiple of 64 bytes long:
//
//   header   PackedHeader
//   scales   float [matrices][padded columns]
//   weights  uint8 [matrices][panels][quads][32][4]
//
// Columns are padded to whole panels of 32 and the depth to whole quads of 4. Weight (m, c, k) is
// stored as q + 128, q in [-127, 127], at [m][c / 32][k / 4][c % 32][k % 4]; a weight is
// q · scale. Padding is q = 0 with scale 0. The checksum covers the header only, since reading all
// of a mapped file would undo the point of mapping it; files have checksums of their own.
#pragma once

#include "kernels.h"

namespace drl {

constexpr uint32_t kLayoutVersion = 1;

struct PackedHeader {
  char magic[8];
  uint32_t version;
  uint32_t panel_columns;
  uint64_t matrices;
  uint64_t columns;
  uint64_t depth;
  uint64_t scales_offset;   // bytes from the start
  uint64_t weights_offset;  // likewise
  uint64_t total_bytes;
  uint64_t reserved[7];  // 0
  uint64_t checksum;     // FNV-1a of the bytes before it
};
static_assert(sizeof(PackedHeader) == 128, "the header is part of the layout");

// A view of packed weights that have been checked.
class PackedWeights {
 public:
  // Reads the header; the view is valid only where the status is DRL_OK.
  static drl_status open(drl_packed packed, PackedWeights* out);

  const drl_packed_shape& shape() const { return shape_; }
  size_t panels() const { return ceil_div(shape_.columns, kPanelColumns); }
  size_t quads() const { return ceil_div(shape_.depth, kQuad); }
  size_t panel_bytes() const { return quads() * kQuad * kPanelColumns; }
  // Columns of a panel that are not padding.
  size_t columns_of(size_t panel) const;
  const float* scales(size_t matrix, size_t panel) const;
  const uint8_t* panel(size_t matrix, size_t panel) const;

 private:
  drl_packed_shape shape_{};
  const float* scales_ = nullptr;
  const uint8_t* weights_ = nullptr;
};

}  // namespace drl
