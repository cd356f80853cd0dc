// How work is cut into tasks: small enough to balance, large enough to be worth a thread.
#pragma once

#include "kernels.h"

namespace drl {

// Handing out a task costs microseconds, about what reading this many bytes of weights costs, and
// waking threads costs several times that. Less than kSerialBytes in all stays on one thread.
constexpr size_t kTaskBytes = 48 * 1024;
constexpr size_t kSerialBytes = 384 * 1024;
constexpr size_t kMostTasks = 32;
// From about so many rows on a panel costs its arithmetic rather than its bytes.
constexpr size_t kRowsPerRead = 8;
// Fewer values than this are quantised faster than they are handed out.
constexpr size_t kSerialValues = 64 * 1024;

// Panels that one task multiplies with `rows` rows.
inline size_t panels_per_task(size_t panels, size_t panel_bytes, size_t rows) {
  const size_t panel_cost = panel_bytes + panel_bytes * rows / kRowsPerRead;
  if (panels * panel_cost < kSerialBytes) return panels;
  const size_t worth = ceil_div(kTaskBytes, panel_cost);
  const size_t balanced = ceil_div(panels, kMostTasks);
  return worth > balanced ? worth : balanced;
}

}  // namespace drl
