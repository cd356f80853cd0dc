// Kernels for any processor. Slow, and what the others are tested against.
#include "row_kernels.h"

namespace drl {
namespace {

struct ScalarMicro {
  static constexpr size_t kRows = 4;

  template <size_t Rows>
  static void int8(const TileRows& rows, Panel panel, size_t quads, float* totals) {
    int32_t sums[Rows * kPanelColumns] = {};
    for (size_t quad = 0; quad < quads; ++quad) {
      for (size_t i = 0; i < kPanelColumns * kQuad; ++i) {
        const int32_t weight = panel.values[quad * kPanelColumns * kQuad + i] - kInt8Bias;
        add<Rows>(rows.quads + quad * Rows, i, weight, sums);
      }
    }
    for (size_t i = 0; i < Rows * kPanelColumns; ++i) totals[i] = static_cast<float>(sums[i]);
  }

  template <drl_format Format, size_t Rows>
  static void blocks(const TileRows& rows, Panel panel, size_t blocks, float* totals) {
    for (size_t i = 0; i < Rows * kPanelColumns; ++i) totals[i] = 0.0f;
    for (size_t block = 0; block < blocks; ++block) {
      int32_t sums[Rows * kPanelColumns] = {};
      const int32_t* quads = rows.quads + block * kBlockQuads * Rows;
      panel.values = Format == DRL_FORMAT_INT4 ? add_halves<Rows>(quads, panel.values, sums)
                                               : add_bytes<Rows>(quads, panel.values, sums);
      for (size_t i = 0; i < Rows * kPanelColumns; ++i) {
        const float multiplier = panel.multipliers[block * kPanelColumns + i % kPanelColumns];
        totals[i] += static_cast<float>(sums[i]) * multiplier;
      }
    }
  }

 private:
  // Adds the products of a block, and returns where the next one begins.
  template <size_t Rows>
  static const uint8_t* add_bytes(const int32_t* quads, const uint8_t* values, int32_t* sums) {
    for (size_t quad = 0; quad < kBlockQuads; ++quad) {
      for (size_t i = 0; i < kPanelColumns * kQuad; ++i) {
        add<Rows>(quads + quad * Rows, i, *values++ - kInt8Bias, sums);
      }
    }
    return values;
  }

  template <size_t Rows>
  static const uint8_t* add_halves(const int32_t* low, const uint8_t* values, int32_t* sums) {
    const int32_t* high = low + kBlockQuads / 2 * Rows;
    for (size_t j = 0; j < kBlockQuads / 2; ++j) {
      for (size_t i = 0; i < kPanelColumns * kQuad; ++i) {
        const int32_t pair = *values++;
        add<Rows>(low + j * Rows, i, (pair & 15) - kInt4Bias, sums);
        add<Rows>(high + j * Rows, i, (pair >> 4) - kInt4Bias, sums);
      }
    }
    return values;
  }

  // Adds the products of a weight, number i of its 32 quads, with every row's value.
  template <size_t Rows>
  static void add(const int32_t* quads, size_t i, int32_t weight, int32_t* sums) {
    for (size_t row = 0; row < Rows; ++row) {
      int8_t values[kQuad];
      std::memcpy(values, quads + row, kQuad);
      sums[row * kPanelColumns + i / kQuad] += values[i % kQuad] * weight;
    }
  }
};

}  // namespace

const Kernels& scalar_kernels() {
  static constexpr Kernels kernels = make_kernels<ScalarMicro>();
  return kernels;
}

}  // namespace drl
