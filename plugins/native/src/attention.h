// How attention is cut into tasks: by key head, and by groups of the queries that share it.
#pragma once

#include "attention_kernels.h"
#include "parallel_for.h"
#include "task_size.h"
#include "workspace.h"

namespace drl {

// Queries that pass over keys and values together. Their scores must stay in the cache.
constexpr size_t kMostQueries = 32;

struct AttentionPlan {
  size_t heads;    // key heads of all sources
  size_t queries;  // of one key head
  size_t slots;    // the most that a query attends to
  size_t row_bytes;  // of a key

  size_t groups() const { return ceil_div(queries, kMostQueries); }
  size_t group_queries() const { return ceil_div(queries, groups()); }
  size_t units() const { return heads * groups(); }

  // A row of scores, longer by a vector so that rows do not compete for one place in the cache.
  size_t stride() const { return (ceil_div(slots, kFloatLanes) + 1) * kFloatLanes; }

  size_t units_per_task() const {
    return panels_per_task(units(), 2 * slots * row_bytes, group_queries());
  }
  size_t tasks() const { return ceil_div(units(), units_per_task()); }

  float* scores(Carver& carver) const {
    return carver.take<float>(tasks() * group_queries() * stride());
  }
};

// The queries of one key head that pass together.
struct QueryGroup {
  size_t head;
  size_t first;
  size_t count;
  size_t next_head;  // whose keys the same thread reads then
};

// Calls attend_group(group, scores) for the queries of every head, in tasks.
template <class Group>
void for_query_groups(const AttentionPlan& plan, const drl_execution& execution, float* scores,
                      const Group& attend_group) {
  const size_t units = plan.units_per_task();
  parallel_for(execution, plan.tasks(), [&](size_t task) {
    float* own = scores + task * plan.group_queries() * plan.stride();
    const size_t last = (task + 1) * units < plan.units() ? (task + 1) * units : plan.units();
    for (size_t unit = task * units; unit < last; ++unit) {
      const size_t first = unit % plan.groups() * plan.group_queries();
      if (first >= plan.queries) continue;
      const size_t rest = plan.queries - first;
      const size_t count = rest < plan.group_queries() ? rest : plan.group_queries();
      const size_t next = unit + 1 < last ? unit + 1 : unit;
      attend_group({unit / plan.groups(), first, count, next / plan.groups()}, own);
    }
  });
}

}  // namespace drl
