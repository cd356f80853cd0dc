// Float weights as graphs have them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "drl_native.h"

namespace drl {

// Columns of a panel: of a matrix [depth, columns] they lie side by side, row after row, so that
// memory is read in its own order. A matrix is a row of panels, [panels][depth][columns]; what is
// beyond its last column is 0.
constexpr size_t kFloatPanelColumns = DRL_FLOAT_PANEL;

// Whether processors can read floats there.
inline bool aligned(const float* values) {
  return reinterpret_cast<uintptr_t>(values) % alignof(float) == 0;
}

}  // namespace drl
