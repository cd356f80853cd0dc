// Keys and values among the inputs and outputs of a node: float, or int8 with their scales.
#pragma once

#include "../attention_kernels.h"
#include "custom_op.h"

namespace drl::ort {

// What an operator has of each kind: the elements, as ONNX Runtime and as the kernels call them.
struct FloatStates {
  using Element = float;
  static constexpr ElementType kType = kFloat;
};

struct Int8States {
  using Element = int8_t;
  static constexpr ElementType kType = kInt8;
};

// Numbers of a head whose keys have `elements`; the input is named where there can be none.
template <class Element>
int64_t head_width(Call& call, size_t input, const Tensor& keys) {
  const int64_t behind = static_cast<int64_t>(row_width<Element>(0)), elements = keys.dims[3];
  if (elements < behind + (behind == 0 ? 0 : 1)) {
    call.failure().say("%s must have a number in a head and %" PRId64
                       " bytes behind it and has %" PRId64 " bytes in all",
                       call.name(input), behind, elements);
  }
  return elements - behind;
}

}  // namespace drl::ort
