// The feed-forward layer of experts with float weights: every choice through its expert's up (and
// gate), activation and down, then summed per token in the order of the experts, weighted by the
// gates.
#include <cstring>

#include "attention_kernels.h"
#include "cpu_features.h"
#include "expert_groups.h"
#include "float_weights.h"

namespace drl {
namespace {

// Columns of a matrix that a task takes or leaves together.
constexpr size_t kStrip = 64;
// A single row reads more of them at once: long pieces of memory are read faster.
constexpr size_t kStripsOfOneRow = 4;
// Rows of down that are multiplied together before they are added to their tokens.
constexpr size_t kSumRows = 96;

struct Arrays {
  ExpertGroups groups;
  float* inputs;  // [choices, d]
  float* middle;  // [choices, f]
};

Arrays carve(Carver& carver, const drl_float_routed_ffn& call) {
  const size_t choices = call.tokens * call.choices;
  ExpertGroups groups(carver, choices, call.experts);
  float* inputs = carver.take<float>(choices * call.width);
  return {groups, inputs, carver.take<float>(choices * call.inner)};
}

struct FloatRoutedFfn {
  const drl_float_routed_ffn& call;
  const drl_execution& execution;
  const Kernels& kernels;
  const AttentionKernels& products;
  Arrays arrays;

  void run() const {
    gather();
    raise();
    lower();
  }

 private:
  bool gated() const { return call.gate != nullptr; }

  // How a matrix is cut into tasks of whole strips, for one or all of the experts.
  size_t strips_per_task(size_t columns, size_t depth, size_t experts) const {
    const size_t strips = ceil_div(columns, kStrip);
    const size_t rows = ceil_div(call.tokens * call.choices, arrays.groups.active_count());
    const size_t bytes = kStrip * depth * sizeof(float) * (gated() ? 2 : 1);
    const size_t width = panels_per_task(strips * experts, bytes, rows);
    const size_t least = smaller(rows == 1 ? kStripsOfOneRow : 1, ceil_div(strips, 4));
    return width < least ? least : width;
  }

  // The rows of every expert, side by side.
  void gather() const {
    for (size_t index = 0; index < arrays.groups.active_count(); ++index) {
      const ActiveExpert& active = arrays.groups.active(index);
      for (size_t row = active.first; row < active.first + active.count; ++row) {
        std::memcpy(arrays.inputs + row * call.width,
                    call.x + arrays.groups.place(row) / call.choices * call.width,
                    call.width * sizeof(float));
      }
    }
  }

  // Tasks are (expert, some of its columns).
  void raise() const {
    const size_t experts = arrays.groups.active_count();
    const size_t width = strips_per_task(call.inner, call.width, experts) * kStrip;
    const size_t parts = ceil_div(call.inner, width);
    parallel_for(execution, experts * parts, [&](size_t task) {
      const size_t first = task % parts * width;
      raise(arrays.groups.active(task / parts), first, smaller(width, call.inner - first));
    });
  }

  void raise(const ActiveExpert& active, size_t first, size_t columns) const {
    // The rows of a block stay near, from one product to the other and the activation.
    for (size_t done = 0; done < active.count; done += kSumRows) {
      const size_t row = active.first + done, rows = smaller(kSumRows, active.count - done);
      for (size_t column = first; column < first + columns; column += kStrip * kStripsOfOneRow) {
        const size_t count = smaller(kStrip * kStripsOfOneRow, first + columns - column);
        raise(active.expert, row, rows, column, count);
      }
    }
  }

  void raise(size_t expert, size_t row, size_t rows, size_t column, size_t count) const {
    alignas(64) float opened[kSumRows * kStrip * kStripsOfOneRow];
    const FloatRows x{arrays.inputs + row * call.width, call.width, rows};
    float* y = arrays.middle + row * call.inner + column;
    const size_t place = expert * call.width * call.inner + column;
    const size_t bias = expert * call.inner + column;
    const float* up = call.up + place;
    const float* gate = gated() ? call.gate + place : nullptr;
    const float* next = column + count < call.inner ? up + count : nullptr;
    products.multiply({up, call.inner, call.width, count, gated() ? gate : next}, x, y, call.inner);
    add_bias(call.up_bias, bias, rows, count, y, call.inner);
    if (gated()) {
      products.multiply({gate, call.inner, call.width, count, next}, x, opened, count);
      add_bias(call.gate_bias, bias, rows, count, opened, count);
    }
    for (size_t i = 0; i < rows; ++i) {
      float* out = y + i * call.inner;
      const float* in = gated() ? opened + i * count : out;
      kernels.activate(call.activation, in, gated() ? out : nullptr, count, out);
    }
  }

  // Tasks own columns of y, so each may add up the experts of a token alone.
  void lower() const {
    const size_t width =
        strips_per_task(call.width, call.inner * arrays.groups.active_count(), 1) * kStrip;
    parallel_for(execution, ceil_div(call.width, width), [&](size_t task) {
      const size_t last = smaller(task * width + width, call.width);
      for (size_t index = 0; index < arrays.groups.active_count(); ++index) {
        const ActiveExpert& active = arrays.groups.active(index);
        const size_t strip = active.count == 1 ? kStrip * kStripsOfOneRow : kStrip;
        for (size_t column = task * width; column < last; column += strip) {
          lower(active, column, smaller(strip, last - column));
        }
      }
    });
  }

  void lower(const ActiveExpert& active, size_t column, size_t count) const {
    alignas(64) float totals[kSumRows * kStrip];
    const size_t matrix = active.expert * call.inner * call.width;
    for (size_t done = 0; done < active.count; done += kSumRows) {
      const size_t first = active.first + done, rows = smaller(kSumRows, active.count - done);
      const float* down = call.down + matrix + column;
      const float* next = column + count < call.width ? down + count : nullptr;
      products.multiply({down, call.width, call.inner, count, next},
                        {arrays.middle + first * call.inner, call.inner, rows}, totals, count);
      add_bias(call.down_bias, active.expert * call.width + column, rows, count, totals, count);
      for (size_t i = 0; i < rows; ++i) {
        const size_t place = arrays.groups.place(first + i);
        kernels.accumulate(totals + i * count, call.gates[place], count,
                           call.y + place / call.choices * call.width + column);
      }
    }
  }

  void add_bias(const float* biases, size_t place, size_t rows, size_t count, float* y,
                size_t stride) const {
    for (size_t i = 0; biases != nullptr && i < rows; ++i) {
      kernels.accumulate(biases + place, 1.0f, count, y + i * stride);
    }
  }
};

drl_status check(const drl_float_routed_ffn& call) {
  if (call.width == 0 || call.inner == 0) return DRL_BAD_ARGUMENT;
  if (call.tokens == 0) return DRL_OK;
  if (call.x == nullptr || call.y == nullptr || !exists(call.activation)) return DRL_BAD_ARGUMENT;
  if (call.choices == 0) return DRL_OK;
  if (call.expert_ids == nullptr || call.gates == nullptr) return DRL_BAD_ARGUMENT;
  if (call.experts > 0 && (call.up == nullptr || call.down == nullptr)) return DRL_BAD_ARGUMENT;
  const bool readable = aligned(call.up) && aligned(call.down) && aligned(call.gate);
  return readable ? DRL_OK : DRL_BAD_ARGUMENT;
}

drl_status run(const drl_float_routed_ffn& call, drl_workspace workspace,
               const drl_execution& execution) {
  const Kernels* kernels = kernels_for(execution.isa);
  const AttentionKernels* products = attention_kernels_for(execution.isa);
  if (kernels == nullptr || products == nullptr) return DRL_ISA_UNAVAILABLE;
  drl_status status = check(call);
  if (status != DRL_OK || call.tokens == 0) return status;
  const size_t choices = call.tokens * call.choices;
  Carver carver(workspace);
  Arrays arrays = carve(carver, call);
  if (choices > 0) {
    if (workspace.data == nullptr ||
        workspace.bytes < drl_float_routed_ffn_workspace_bytes(&call)) {
      return DRL_WORKSPACE_TOO_SMALL;
    }
    status = arrays.groups.sort(call.expert_ids, choices, kSumRows);
    if (status != DRL_OK) return status;
  }
  std::memset(call.y, 0, call.tokens * call.width * sizeof(float));
  if (arrays.groups.active_count() > 0) {
    FloatRoutedFfn{call, execution, *kernels, *products, arrays}.run();
  }
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_float_routed_ffn_workspace_bytes(const drl_float_routed_ffn* layer) {
  drl::Carver carver;
  drl::carve(carver, *layer);
  return carver.bytes();
}

extern "C" drl_status drl_float_routed_ffn_run(const drl_float_routed_ffn* layer,
                                               drl_workspace workspace,
                                               const drl_execution* execution) {
  if (layer == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*layer, workspace, *execution);
}
