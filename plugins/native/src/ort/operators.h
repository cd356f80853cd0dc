// The operators, one file each.
#pragma once

#include "abi.h"

namespace drl::ort {

// The tables that make up an operator: one with a kernel, and those of the float types without.
struct Tables {
  const CustomOp* each[3];
};

Tables cached_attention();
Tables cross_attention();
Tables encoder_attention();
Tables expert_route();
Tables head();
Tables linear();
Tables projections();
Tables quantize_states();
Tables quantized_cached_attention();
Tables quantized_cross_attention();
Tables quantized_gather();
Tables quantized_head();
Tables quantized_linear();
Tables quantized_projections();
Tables quantized_routed_ffn();
Tables routed_ffn();

}  // namespace drl::ort
