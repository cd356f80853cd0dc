// The attributes of a node, read once, when its kernel is made.
#pragma once

#include <cinttypes>
#include <cstring>
#include <iterator>

#include "../drl_native.h"
#include "failure.h"

namespace drl::ort {

struct Activation {
  const char* name;
  drl_activation of;  // what is applied, or applied to the gate
  bool gated;
};

constexpr Activation kActivations[] = {{"none", DRL_ACTIVATION_NONE, false},
                                       {"relu", DRL_ACTIVATION_RELU, false},
                                       {"gelu", DRL_ACTIVATION_GELU, false},
                                       {"gelu_tanh", DRL_ACTIVATION_GELU_TANH, false},
                                       {"silu", DRL_ACTIVATION_SILU, false},
                                       {"silu_glu", DRL_ACTIVATION_SILU, true},
                                       {"gelu_glu", DRL_ACTIVATION_GELU_TANH, true}};

class Attributes {
 public:
  Attributes(Failure& failure, const KernelInfo* info) : failure_(failure), info_(info) {}

  // A whole number from 1 on.
  int64_t count(const char* name) {
    int64_t value = 1;
    if (found(KernelInfoGetAttribute_int64::call(failure_.api(), info_, name, &value), name,
              "a whole number") &&
        (value < 1 || value > INT32_MAX)) {
      failure_.say("attribute %s must be in [1, %d] and is %" PRId64, name, INT32_MAX, value);
    }
    return failure_.none() ? value : 1;
  }

  float number(const char* name) {
    float value = 0;
    found(KernelInfoGetAttribute_float::call(failure_.api(), info_, name, &value), name,
          "a number");
    return value;
  }

  // The attribute `activation`; "none" only where there may be none.
  Activation activation(bool may_be_none) {
    char name[32] = {};
    size_t size = sizeof name;
    found(KernelInfoGetAttribute_string::call(failure_.api(), info_, "activation", name, &size),
          "activation", "a short text");
    const Activation* first = std::begin(kActivations) + (may_be_none ? 0 : 1);
    char names[128] = {};
    for (const Activation* known = first; known != std::end(kActivations); ++known) {
      if (std::strcmp(name, known->name) == 0) return *known;
      const size_t end = std::strlen(names);
      std::snprintf(names + end, sizeof names - end, "%s%s", end == 0 ? "" : ", ", known->name);
    }
    failure_.say("attribute activation must be one of %s and is %s", names, name);
    return *first;
  }

  // Refuses packed weights that this library cannot read.
  void check_layout() {
    const int64_t layout = count("layout");
    if (layout > DRL_PACKED_LAYOUT) {
      failure_.say("packed weights of layout %" PRId64
                   "; this library reads layout %d: install a newer drl",
                   layout, DRL_PACKED_LAYOUT);
    } else if (layout < DRL_PACKED_LAYOUT) {
      failure_.say("packed weights of layout %" PRId64
                   "; this library reads layout %d: export again",
                   layout, DRL_PACKED_LAYOUT);
    }
  }

 private:
  bool found(Status* status, const char* name, const char* what) {
    if (status == nullptr) return failure_.none();
    ReleaseStatus::call(failure_.api(), status);
    failure_.say("attribute %s is missing or not %s", name, what);
    return false;
  }

  Failure& failure_;
  const KernelInfo* info_;
};

}  // namespace drl::ort
