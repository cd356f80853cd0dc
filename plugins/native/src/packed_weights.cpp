#include "packed_weights.h"

namespace drl {
namespace {

// Far above any model, and far below where sizes overflow.
constexpr uint64_t kMostWeights = uint64_t{1} << 44;

bool can_be_packed(const drl_weights& weights) {
  if (static_cast<uint32_t>(weights.format) >= kFormats) return false;  // any number may come
  if (weights.matrices == 0 || weights.columns == 0 || weights.depth == 0) return false;
  if (weights.depth > kMaxDepth || weights.columns > kMostWeights) return false;
  const uint64_t rows =
      kMostWeights / (weights.depth + kBlock) / (weights.columns + kPanelColumns);
  return weights.matrices <= rows;
}

size_t panel_values(const drl_weights& weights) {
  const size_t quads = quads_of(weights.format, weights.depth);
  const size_t bytes = quads * kQuad * kPanelColumns;
  return weights.format == DRL_FORMAT_INT4 ? bytes / 2 : bytes;
}

size_t panel_multipliers(const drl_weights& weights) {
  return has_blocks(weights.format) ? ceil_div(weights.depth, kBlock) * kPanelColumns : 0;
}

// What all panels have, or 0 where there can be none.
size_t in_all(const drl_weights& weights, size_t (*of_panel)(const drl_weights&)) {
  if (!can_be_packed(weights)) return 0;
  return weights.matrices * ceil_div(weights.columns, kPanelColumns) * of_panel(weights);
}

drl_weights shaped(drl_format format, uint64_t matrices, uint64_t columns, uint64_t depth) {
  return {format, matrices, columns, depth, nullptr, nullptr, nullptr};
}

}  // namespace

drl_status PackedWeights::open(const drl_weights& weights, PackedWeights* out) {
  if (!can_be_packed(weights)) return DRL_BAD_ARGUMENT;
  if (weights.values == nullptr || weights.scales == nullptr) return DRL_BAD_ARGUMENT;
  if (reinterpret_cast<uintptr_t>(weights.scales) % alignof(float) != 0) return DRL_BAD_ARGUMENT;
  if (has_blocks(weights.format) && weights.multipliers == nullptr) return DRL_BAD_ARGUMENT;
  out->weights_ = weights;
  out->values_bytes_ = panel_values(weights);
  out->multipliers_bytes_ = panel_multipliers(weights);
  return DRL_OK;
}

size_t PackedWeights::columns_of(size_t panel) const {
  const size_t left = weights_.columns - panel * kPanelColumns;
  return left < kPanelColumns ? left : kPanelColumns;
}

Panel PackedWeights::panel(size_t matrix, size_t panel) const {
  const size_t index = matrix * panels() + panel;
  return {weights_.values + index * values_bytes_,
          weights_.multipliers == nullptr ? nullptr
                                          : weights_.multipliers + index * multipliers_bytes_};
}

const float* PackedWeights::scales(size_t matrix, size_t panel) const {
  return weights_.scales + (matrix * panels() + panel) * kPanelColumns;
}

}  // namespace drl

extern "C" size_t drl_values_bytes(drl_format format, uint64_t matrices, uint64_t columns,
                                   uint64_t depth) {
  return drl::in_all(drl::shaped(format, matrices, columns, depth), drl::panel_values);
}

extern "C" size_t drl_multipliers_bytes(drl_format format, uint64_t matrices, uint64_t columns,
                                        uint64_t depth) {
  return drl::in_all(drl::shaped(format, matrices, columns, depth), drl::panel_multipliers);
}

extern "C" size_t drl_scales_bytes(drl_format format, uint64_t matrices, uint64_t columns,
                                   uint64_t depth) {
  return drl::in_all(drl::shaped(format, matrices, columns, depth), [](const drl_weights&) {
    return drl::kPanelColumns * sizeof(float);
  });
}
