// Kernels for any processor. Slow, and what the others are tested against.
#include "row_kernels.h"

namespace drl {
namespace {

struct ScalarMicro {
  static constexpr size_t kRows = 4;

  template <size_t Rows>
  static void tile(const int32_t* activations, const int32_t*, const uint8_t* panel, size_t quads,
                   int32_t* sums) {
    for (size_t i = 0; i < Rows * kPanelColumns; ++i) sums[i] = 0;
    for (size_t quad = 0; quad < quads; ++quad, panel += kPanelColumns * kQuad) {
      for (size_t row = 0; row < Rows; ++row) {
        int8_t a[kQuad];
        std::memcpy(a, activations + quad * Rows + row, kQuad);
        int32_t* out = sums + row * kPanelColumns;
        for (size_t column = 0; column < kPanelColumns; ++column) {
          const uint8_t* w = panel + column * kQuad;
          for (size_t i = 0; i < kQuad; ++i) out[column] += a[i] * (w[i] - kWeightBias);
        }
      }
    }
  }
};

}  // namespace

const Kernels& scalar_kernels() {
  static constexpr Kernels kernels = make_kernels<ScalarMicro>();
  return kernels;
}

}  // namespace drl
