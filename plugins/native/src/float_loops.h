// The loops of one instruction set as a table, made from its Vector.
#pragma once

#include "expert_route_loops.h"
#include "head_loops.h"
#include "matrix_loops.h"

namespace drl {
namespace {

template <class Vector>
constexpr AttentionKernels make_attention_kernels() {
  return {attend<Vector, float>, attend<Vector, int8_t>, quantize_state,
          project<Vector>,       head<Vector>,           multiply<Vector>,
          softmax<Vector>,       exponentials<Vector>};
}

}  // namespace
}  // namespace drl
