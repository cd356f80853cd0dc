// The feed-forward layer of experts: every choice through its expert's up (and gate), activation
// and down, then summed per token in the order of the experts, weighted by the gates.
#include <cstring>

#include "cpu_features.h"
#include "expert_groups.h"
#include "parallel_for.h"
#include "task_size.h"

namespace drl {
namespace {

struct RoutedFfn {
  const drl_routed_ffn& call;
  const drl_execution& execution;
  const Kernels& kernels;
  PackedWeights up;
  PackedWeights gate;  // read only where call.gate is given
  PackedWeights down;
  ExpertGroups groups;
  QuantizedRows inputs;
  QuantizedRows middles;
  float* middle;  // [choices, f]

  bool gated() const { return call.gate.data != nullptr; }
  size_t width() const { return up.shape().depth; }
  size_t inner() const { return up.shape().columns; }

  template <class RowAt>
  void quantize(QuantizedRows& rows, size_t depth, const RowAt& row_at) {
    const auto one_block = [&](size_t index) {
      rows.quantize(kernels, groups.block(index), row_at);
    };
    if (call.tokens * call.choices * depth < kSerialValues) {
      for (size_t index = 0; index < groups.block_count(); ++index) one_block(index);
    } else {
      parallel_for(execution, groups.block_count(), one_block);
    }
  }

  void quantize_inputs() {
    quantize(inputs, width(), [&](size_t choice) {
      return call.x + groups.place(choice) / call.choices * width();
    });
  }

  void quantize_middles() {
    quantize(middles, inner(), [&](size_t choice) { return middle + choice * inner(); });
  }

  // Tasks are (expert, some of its panels).
  void raise() const {
    const size_t rows = ceil_div(call.tokens * call.choices, groups.active_count());
    const size_t bytes = up.panel_bytes() * (gated() ? 2 : 1);
    const size_t panels = panels_per_task(up.panels() * groups.active_count(), bytes, rows);
    const size_t parts = ceil_div(up.panels(), panels);
    parallel_for(execution, groups.active_count() * parts, [&](size_t task) {
      const size_t first = task % parts * panels;
      const size_t last = first + panels < up.panels() ? first + panels : up.panels();
      for (size_t panel = first; panel < last; ++panel) {
        raise(groups.active(task / parts), panel);
      }
    });
  }

  void raise(size_t expert, size_t panel) const {
    const size_t column = panel * kPanelColumns;
    const Dequantization raised = plain(up, call.up_bias, expert, panel);
    groups.for_blocks(expert, kernels.tile_rows, [&](RowBlock block) {
      const auto store = [&](const Dequantization& how) {
        return [this, column, how](size_t row, const int32_t* sums, float scale) {
          kernels.dequantize(sums, scale, how, middle + row * inner() + column);
        };
      };
      Dequantization open = raised;
      if (!gated()) open.activation = call.activation;
      inputs.multiply(kernels, block, up.panel(expert, panel), store(open));
      if (!gated()) return;
      const Dequantization opened = plain(gate, call.gate_bias, expert, panel);
      inputs.multiply(kernels, block, gate.panel(expert, panel),
                      [&](size_t row, const int32_t* sums, float scale) {
                        float values[kPanelColumns];
                        float* y = middle + row * inner() + column;
                        kernels.dequantize(sums, scale, opened, values);
                        kernels.activate(call.activation, values, y, opened.columns, y);
                      });
    });
  }

  // Tasks own columns of y, so each may add up the experts of a token alone.
  void lower() const {
    const size_t rows = ceil_div(call.tokens * call.choices, groups.active_count());
    const size_t bytes = down.panel_bytes() * groups.active_count();
    const size_t panels = panels_per_task(down.panels(), bytes, rows);
    parallel_for(execution, ceil_div(down.panels(), panels), [&](size_t task) {
      const size_t first = task * panels;
      const size_t last = first + panels < down.panels() ? first + panels : down.panels();
      for (size_t panel = first; panel < last; ++panel) {
        for (size_t index = 0; index < groups.active_count(); ++index) {
          lower(groups.active(index), panel);
        }
      }
    });
  }

  void lower(size_t expert, size_t panel) const {
    const Dequantization lowered = plain(down, call.down_bias, expert, panel);
    groups.for_blocks(expert, kernels.tile_rows, [&](RowBlock block) {
      middles.multiply(kernels, block, down.panel(expert, panel),
                       [&](size_t row, const int32_t* sums, float scale) {
                         float values[kPanelColumns];
                         kernels.dequantize(sums, scale, lowered, values);
                         const size_t place = groups.place(row);
                         float* y = call.y + place / call.choices * width();
                         kernels.accumulate(values, call.gates[place], lowered.columns,
                                            y + panel * kPanelColumns);
                       });
    });
  }

  static Dequantization plain(const PackedWeights& weights, const float* bias, size_t expert,
                              size_t panel) {
    const size_t column = expert * weights.shape().columns + panel * kPanelColumns;
    return {weights.scales(expert, panel), bias == nullptr ? nullptr : bias + column,
            DRL_ACTIVATION_NONE, weights.columns_of(panel)};
  }
};

struct Arrays {
  ExpertGroups groups;
  QuantizedRows inputs;
  QuantizedRows middles;
  float* middle;
};

Arrays carve(Carver& carver, const drl_packed_shape& up, size_t choices) {
  ExpertGroups groups(carver, choices, up.matrices);
  QuantizedRows inputs(carver, choices, up.depth);
  QuantizedRows middles(carver, choices, up.columns);
  return {groups, inputs, middles, carver.take<float>(choices * up.columns)};
}

bool same_shape(const drl_packed_shape& a, const drl_packed_shape& b) {
  return a.matrices == b.matrices && a.columns == b.columns && a.depth == b.depth;
}

drl_status open_weights(const drl_routed_ffn& call, PackedWeights* up, PackedWeights* gate,
                        PackedWeights* down) {
  drl_status status = PackedWeights::open(call.up, up);
  if (status == DRL_OK) status = PackedWeights::open(call.down, down);
  if (status == DRL_OK && call.gate.data != nullptr) status = PackedWeights::open(call.gate, gate);
  if (status != DRL_OK) return status;
  const drl_packed_shape& raised = up->shape();
  if (!same_shape({raised.matrices, raised.depth, raised.columns}, down->shape()) ||
      (call.gate.data != nullptr && !same_shape(raised, gate->shape()))) {
    return DRL_SHAPES_DIFFER;
  }
  return DRL_OK;
}

drl_status run(const drl_routed_ffn& call, drl_workspace workspace,
               const drl_execution& execution) {
  const Kernels* kernels = kernels_for(execution.isa);
  if (kernels == nullptr) return DRL_ISA_UNAVAILABLE;
  PackedWeights up, gate, down;
  drl_status status = open_weights(call, &up, &gate, &down);
  if (status != DRL_OK) return status;
  if (call.tokens == 0) return DRL_OK;
  if (call.x == nullptr || call.y == nullptr) return DRL_BAD_ARGUMENT;
  std::memset(call.y, 0, call.tokens * up.shape().depth * sizeof(float));
  if (call.choices == 0) return DRL_OK;
  if (call.expert_ids == nullptr || call.gates == nullptr) return DRL_BAD_ARGUMENT;
  if (workspace.data == nullptr ||
      workspace.bytes < drl_routed_ffn_workspace_bytes(&up.shape(), call.tokens, call.choices)) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  Carver carver(workspace);
  Arrays arrays = carve(carver, up.shape(), call.tokens * call.choices);
  status = arrays.groups.sort(call.expert_ids, call.tokens * call.choices, kernels->tile_rows);
  if (status != DRL_OK || arrays.groups.active_count() == 0) return status;
  RoutedFfn layer{call, execution,     *kernels,      up,             gate,
                  down, arrays.groups, arrays.inputs, arrays.middles, arrays.middle};
  layer.quantize_inputs();
  layer.raise();
  layer.quantize_middles();
  layer.lower();
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_routed_ffn_workspace_bytes(const drl_packed_shape* up, size_t tokens,
                                                 size_t choices) {
  drl::Carver carver;
  drl::carve(carver, *up, tokens * choices);
  return carver.bytes();
}

extern "C" drl_status drl_routed_ffn_int8(const drl_routed_ffn* layer, drl_workspace workspace,
                                          const drl_execution* execution) {
  if (layer == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*layer, workspace, *execution);
}
