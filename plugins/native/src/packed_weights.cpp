#include "packed_weights.h"

#include <cmath>
#include <cstring>

namespace drl {
namespace {

constexpr char kMagic[8] = {'D', 'R', 'L', 'I', 'N', 'T', '8', '\n'};
constexpr size_t kAlignment = 64;
// Far above any model, and far below where sizes overflow.
constexpr uint64_t kMostWeights = uint64_t{1} << 44;

uint64_t checksum_of(const PackedHeader& header) {
  unsigned char bytes[offsetof(PackedHeader, checksum)];
  std::memcpy(bytes, &header, sizeof bytes);
  uint64_t hash = 0xCBF29CE484222325u;
  for (unsigned char byte : bytes) hash = (hash ^ byte) * 0x100000001B3u;
  return hash;
}

bool can_be_packed(const drl_packed_shape& shape) {
  if (shape.matrices == 0 || shape.columns == 0 || shape.depth == 0) return false;
  if (shape.depth > kMaxDepth || shape.columns > kMostWeights) return false;
  const uint64_t rows = kMostWeights / (shape.depth + kQuad) / (shape.columns + kPanelColumns);
  return shape.matrices <= rows;
}

// The one header that weights of this shape have.
PackedHeader header_for(const drl_packed_shape& shape) {
  const uint64_t padded = ceil_div(shape.columns, kPanelColumns) * kPanelColumns;
  const uint64_t scales = shape.matrices * padded * sizeof(float);
  const uint64_t weights = shape.matrices * padded * ceil_div(shape.depth, kQuad) * kQuad;
  PackedHeader header{};
  std::memcpy(header.magic, kMagic, sizeof kMagic);
  header.version = kLayoutVersion;
  header.panel_columns = kPanelColumns;
  header.matrices = shape.matrices;
  header.columns = shape.columns;
  header.depth = shape.depth;
  header.scales_offset = sizeof(PackedHeader);
  header.weights_offset = header.scales_offset + ceil_div(scales, kAlignment) * kAlignment;
  header.total_bytes = header.weights_offset + weights;
  header.checksum = checksum_of(header);
  return header;
}

// Where a weight lies, from the start of its matrix.
size_t offset_of(size_t column, size_t k, size_t quads) {
  const size_t panel = column / kPanelColumns * quads * kQuad * kPanelColumns;
  return panel + (k / kQuad * kPanelColumns + column % kPanelColumns) * kQuad + k % kQuad;
}

class Writer {
 public:
  Writer(const drl_packed_shape& shape, void* packed)
      : header_(header_for(shape)), base_(static_cast<uint8_t*>(packed)) {
    std::memcpy(base_, &header_, sizeof header_);
    std::memset(base_ + sizeof header_, 0, header_.weights_offset - sizeof header_);
    std::memset(base_ + header_.weights_offset, kWeightBias,
                header_.total_bytes - header_.weights_offset);
  }

  void set_scale(size_t matrix, size_t column, float scale) {
    const size_t place = matrix * padded_columns() + column;
    std::memcpy(base_ + header_.scales_offset + place * sizeof scale, &scale, sizeof scale);
  }

  void set_weight(size_t matrix, size_t column, size_t k, int32_t q) {
    const size_t quads = ceil_div(header_.depth, kQuad);
    const size_t start = matrix * padded_columns() * quads * kQuad;
    base_[header_.weights_offset + start + offset_of(column, k, quads)] =
        static_cast<uint8_t>(q + kWeightBias);
  }

 private:
  size_t padded_columns() const { return ceil_div(header_.columns, kPanelColumns) * kPanelColumns; }

  PackedHeader header_;
  uint8_t* base_;
};

drl_status check_packing(const void* weights, const drl_packed_shape* shape, const void* packed,
                         size_t bytes) {
  if (weights == nullptr || shape == nullptr || packed == nullptr) return DRL_BAD_ARGUMENT;
  const size_t needed = drl_packed_bytes(shape);
  return needed == 0 || bytes < needed ? DRL_BAD_ARGUMENT : DRL_OK;
}

}  // namespace

drl_status PackedWeights::open(drl_packed packed, PackedWeights* out) {
  PackedHeader header;
  if (packed.data == nullptr || packed.bytes < sizeof header) return DRL_NOT_PACKED;
  std::memcpy(&header, packed.data, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0) return DRL_NOT_PACKED;
  if (header.version > kLayoutVersion) return DRL_NEWER_LAYOUT;
  const drl_packed_shape shape{header.matrices, header.columns, header.depth};
  if (!can_be_packed(shape)) return DRL_NOT_PACKED;
  const PackedHeader expected = header_for(shape);  // with its checksum
  if (std::memcmp(&header, &expected, sizeof header) != 0) return DRL_NOT_PACKED;
  if (packed.bytes < header.total_bytes) return DRL_NOT_PACKED;
  if (reinterpret_cast<uintptr_t>(packed.data) % alignof(float) != 0) return DRL_BAD_ARGUMENT;
  const uint8_t* base = static_cast<const uint8_t*>(packed.data);
  out->shape_ = shape;
  out->scales_ = reinterpret_cast<const float*>(base + header.scales_offset);
  out->weights_ = base + header.weights_offset;
  return DRL_OK;
}

size_t PackedWeights::columns_of(size_t panel) const {
  const size_t left = shape_.columns - panel * kPanelColumns;
  return left < kPanelColumns ? left : kPanelColumns;
}

const float* PackedWeights::scales(size_t matrix, size_t panel) const {
  return scales_ + (matrix * panels() + panel) * kPanelColumns;
}

const uint8_t* PackedWeights::panel(size_t matrix, size_t panel) const {
  return weights_ + (matrix * panels() + panel) * panel_bytes();
}

}  // namespace drl

extern "C" size_t drl_packed_bytes(const drl_packed_shape* shape) {
  if (shape == nullptr || !drl::can_be_packed(*shape)) return 0;
  return drl::header_for(*shape).total_bytes;
}

extern "C" drl_status drl_pack(const float* weights, const drl_packed_shape* shape, void* packed,
                               size_t bytes) {
  const drl_status status = drl::check_packing(weights, shape, packed, bytes);
  if (status != DRL_OK) return status;
  drl::Writer writer(*shape, packed);
  for (size_t matrix = 0; matrix < shape->matrices; ++matrix) {
    for (size_t column = 0; column < shape->columns; ++column, weights += shape->depth) {
      float largest = 0.0f;
      for (size_t k = 0; k < shape->depth; ++k) {
        if (!std::isfinite(weights[k])) return DRL_NOT_FINITE;
        largest = std::fmax(largest, std::fabs(weights[k]));
      }
      const float scale = largest / 127.0f;
      // A column of nothing but the smallest numbers has no usable scale and counts as 0.
      if (!std::isnormal(scale)) continue;
      writer.set_scale(matrix, column, scale);
      for (size_t k = 0; k < shape->depth; ++k) {
        const float q = std::nearbyint(weights[k] / scale);
        writer.set_weight(matrix, column, k,
                          static_cast<int32_t>(std::fmin(127.0f, std::fmax(-127.0f, q))));
      }
    }
  }
  return DRL_OK;
}

extern "C" drl_status drl_pack_int8(const int8_t* weights, const float* scales,
                                    const drl_packed_shape* shape, void* packed, size_t bytes) {
  const drl_status status = drl::check_packing(weights, shape, packed, bytes);
  if (status != DRL_OK || scales == nullptr) return DRL_BAD_ARGUMENT;
  drl::Writer writer(*shape, packed);
  for (size_t matrix = 0; matrix < shape->matrices; ++matrix) {
    for (size_t column = 0; column < shape->columns; ++column, weights += shape->depth) {
      const float scale = scales[matrix * shape->columns + column];
      if (!std::isfinite(scale)) return DRL_NOT_FINITE;
      writer.set_scale(matrix, column, scale);
      for (size_t k = 0; k < shape->depth; ++k) {
        // The kernels multiply magnitudes in 7 bits.
        if (weights[k] == -128) return DRL_BAD_ARGUMENT;
        writer.set_weight(matrix, column, k, weights[k]);
      }
    }
  }
  return DRL_OK;
}

extern "C" drl_status drl_read_packed_shape(drl_packed packed, drl_packed_shape* shape) {
  drl::PackedWeights view;
  const drl_status status = drl::PackedWeights::open(packed, &view);
  if (status == DRL_OK && shape != nullptr) *shape = view.shape();
  return status;
}

extern "C" drl_status drl_unpack_int8(drl_packed packed, int8_t* weights, float* scales) {
  drl::PackedWeights view;
  const drl_status status = drl::PackedWeights::open(packed, &view);
  if (status != DRL_OK || weights == nullptr || scales == nullptr) {
    return status != DRL_OK ? status : DRL_BAD_ARGUMENT;
  }
  const drl_packed_shape& shape = view.shape();
  for (size_t matrix = 0; matrix < shape.matrices; ++matrix) {
    const uint8_t* from = view.panel(matrix, 0);
    for (size_t column = 0; column < shape.columns; ++column, weights += shape.depth) {
      const size_t panel = column / drl::kPanelColumns;
      std::memcpy(scales++, view.scales(matrix, panel) + column % drl::kPanelColumns,
                  sizeof(float));
      for (size_t k = 0; k < shape.depth; ++k) {
        const uint8_t stored = from[drl::offset_of(column, k, view.quads())];
        weights[k] = static_cast<int8_t>(stored - drl::kWeightBias);
      }
    }
  }
  return DRL_OK;
}
