// Normalises and quantises a row, compiled for every instruction set that includes it; see
// exponential.h.
#pragma once

#include "kernels.h"
#include "lanes.h"
#include "magnitude.h"

namespace drl {
namespace {

// Values that are quantised together: whole blocks.
constexpr size_t kChunk = 64;

struct Normalized {
  const float* norm;
  float factor;
  float operator()(float x, size_t i) const { return x * factor * norm[i]; }
};

// 1 / sqrt(mean(x²) + epsilon)
inline float norm_factor(const float* x, size_t depth, float epsilon) {
  float lanes[kLanes] = {};
  size_t done = 0;
  for (; done + kLanes <= depth; done += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += x[done + lane] * x[done + lane];
  }
  for (size_t i = done; i < depth; ++i) lanes[i - done] += x[i] * x[i];
  const float mean = sum_tree<kLanes>(lanes) / static_cast<float>(depth);
  return 1.0f / __builtin_sqrtf(mean + epsilon);
}

void normalize_row(const RowSource& row, float* y) {
  const Normalized normalized{row.norm, norm_factor(row.x, row.depth, row.epsilon)};
  for (size_t i = 0; i < row.depth; ++i) y[i] = normalized(row.x[i], i);
}

inline void store_quads(const int8_t* values, size_t count, size_t stride, int32_t* out) {
  if (stride == 1) {
    std::memcpy(out, values, count * kQuad);
  } else {
    for (size_t quad = 0; quad < count; ++quad) {
      std::memcpy(out + quad * stride, values + quad * kQuad, kQuad);
    }
  }
}

// Quantises the values from `first` on, and returns their sum.
template <size_t Count, class Prepare>
int32_t quantize_values(const float* x, size_t first, const Prepare& prepare, float inverse,
                        int8_t* values) {
  int32_t sum = 0;
  for (size_t i = 0; i < Count; ++i) {
    const int32_t value = rounded(prepare(x[first + i], first + i) * inverse);
    values[i] = static_cast<int8_t>(value);
    sum += value;
  }
  return sum;
}

// Quantises a chunk, of which `quads` are stored.
template <drl_format Format, class Prepare>
void quantize_chunk(const float* x, size_t first, const Prepare& prepare, float inverse,
                    size_t quads, const RowTarget& target, size_t quad) {
  int8_t values[kChunk];
  if constexpr (has_blocks(Format)) {
    for (size_t block = 0; block * kBlockQuads < quads; ++block) {
      const size_t at = block * kBlock;
      target.corrections[(quad / kBlockQuads + block) * target.stride] =
          -bias_of(Format) * quantize_values<kBlock>(x, first + at, prepare, inverse, values + at);
    }
  } else {
    *target.corrections -=
        bias_of(Format) * quantize_values<kChunk>(x, first, prepare, inverse, values);
  }
  store_quads(values, quads, target.stride, target.quads + quad * target.stride);
}

template <drl_format Format, class Prepare>
void quantize_with(const RowSource& row, const Prepare& prepare, const RowTarget& target) {
  constexpr bool kBlocks = has_blocks(Format);
  const size_t quads =
      kBlocks ? ceil_div(row.depth, kBlock) * kBlockQuads : ceil_div(row.depth, kQuad);
  const int32_t bits = largest_magnitude(row.x, row.depth, prepare);
  const float largest = from_bits(bits);
  const bool finite = bits < kInfinityBits;
  *target.corrections = 0;
  if (!finite || largest < kSmallestMagnitude) {
    for (size_t quad = 0; quad < quads; ++quad) target.quads[quad * target.stride] = 0;
    for (size_t block = 0; kBlocks && block * kBlockQuads < quads; ++block) {
      target.corrections[block * target.stride] = 0;
    }
    *target.scale = finite ? 0.0f : from_bits(kInfinityBits + 1);
    return;
  }
  const float inverse = 127.0f / largest;
  size_t done = 0;
  for (; done + kChunk <= row.depth; done += kChunk) {
    quantize_chunk<Format>(row.x, done, prepare, inverse, kChunk / kQuad, target, done / kQuad);
  }
  if (done < row.depth) {
    float rest[kChunk] = {};
    for (size_t i = done; i < row.depth; ++i) rest[i - done] = prepare(row.x[i], i);
    quantize_chunk<Format>(rest, 0, Unchanged{}, inverse, quads - done / kQuad, target,
                           done / kQuad);
  }
  *target.scale = largest / 127.0f;
}

template <class Prepare>
void quantize_as(const RowSource& row, drl_format format, const Prepare& prepare,
                 const RowTarget& target) {
  switch (format) {
    case DRL_FORMAT_INT8: return quantize_with<DRL_FORMAT_INT8>(row, prepare, target);
    case DRL_FORMAT_INT4: return quantize_with<DRL_FORMAT_INT4>(row, prepare, target);
    case DRL_FORMAT_INT8_BLOCK: return quantize_with<DRL_FORMAT_INT8_BLOCK>(row, prepare, target);
  }
}

void quantize_row(const RowSource& row, drl_format format, const RowTarget& target) {
  if (row.norm == nullptr) {
    quantize_as(row, format, Unchanged{}, target);
  } else {
    const float factor = norm_factor(row.x, row.depth, row.epsilon);
    quantize_as(row, format, Normalized{row.norm, factor}, target);
  }
}

}  // namespace
}  // namespace drl
