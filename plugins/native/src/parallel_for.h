// Runs a function for every index below a count on the threads of whoever called us.
#pragma once

#include "drl_native.h"

namespace drl {

template <class Body>
void parallel_for(const drl_execution& execution, size_t count, const Body& body) {
  if (count <= 1 || execution.parallel_for == nullptr) {
    for (size_t index = 0; index < count; ++index) body(index);
    return;
  }
  const drl_task task = [](void* state, size_t index) {
    (*static_cast<const Body*>(state))(index);
  };
  execution.parallel_for(execution.context, count, task, const_cast<Body*>(&body));
}

}  // namespace drl
