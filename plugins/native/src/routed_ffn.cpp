// The feed-forward layer of experts: every choice through its expert's up (and gate), activation
// and down, then summed per token in the order of the experts, weighted by the gates.
#include <cstring>

#include "cpu_features.h"
#include "expert_groups.h"

namespace drl {
namespace {

constexpr size_t kTileFloats = kMaxTileRows * kPanelColumns;

struct Arrays {
  ExpertGroups groups;
  QuantizedRows inputs;
  QuantizedRows middles;
  float* middle;  // [choices, f]
};

Arrays carve(Carver& carver, const drl_routed_ffn& call) {
  const size_t choices = call.tokens * call.choices;
  ExpertGroups groups(carver, choices, call.up.matrices);
  QuantizedRows inputs(carver, call.up.format, choices, call.up.depth);
  QuantizedRows middles(carver, call.down.format, choices, call.up.columns);
  return {groups, inputs, middles, carver.take<float>(choices * call.up.columns)};
}

struct RoutedFfn {
  const drl_routed_ffn& call;
  const drl_execution& execution;
  const Kernels& kernels;
  PackedWeights up;
  PackedWeights gate;  // read only where call.gate is given
  PackedWeights down;
  Arrays arrays;

  void run() {
    quantize(arrays.inputs, width(), [&](size_t choice) {
      return call.x + arrays.groups.place(choice) / call.choices * width();
    });
    raise();
    quantize(arrays.middles, inner(),
             [&](size_t choice) { return arrays.middle + choice * inner(); });
    lower();
  }

 private:
  bool gated() const { return call.gate.values != nullptr; }
  size_t width() const { return up.depth(); }
  size_t inner() const { return up.columns(); }
  size_t rows_per_expert() const {
    return ceil_div(call.tokens * call.choices, arrays.groups.active_count());
  }

  template <class RowAt>
  void quantize(QuantizedRows& rows, size_t depth, const RowAt& row_at) {
    const auto one_block = [&](size_t index) {
      rows.quantize(kernels, arrays.groups.block(index), [&](size_t choice) {
        return RowSource{row_at(choice), nullptr, 0.0f, depth};
      });
    };
    const drl_execution serial{execution.isa, nullptr, nullptr};
    const bool few = call.tokens * call.choices * depth < kSerialValues;
    parallel_for(few ? serial : execution, arrays.groups.block_count(), one_block);
  }

  // Tasks are (expert, some of its panels).
  void raise() const {
    const size_t experts = arrays.groups.active_count();
    const size_t bytes = up.panel_bytes() * (gated() ? 2 : 1);
    const size_t panels = panels_per_task(up.panels() * experts, bytes, rows_per_expert());
    const size_t parts = ceil_div(up.panels(), panels);
    parallel_for(execution, experts * parts, [&](size_t task) {
      const ActiveExpert& active = arrays.groups.active(task / parts);
      const size_t first = task % parts * panels;
      const size_t last = first + panels < up.panels() ? first + panels : up.panels();
      for (size_t panel = first; panel < last; ++panel) {
        arrays.groups.for_blocks(active, kernels.tile_rows, [&](RowBlock block) {
          raise(active.expert, panel, block);
        });
      }
    });
  }

  void raise(size_t expert, size_t panel, RowBlock block) const {
    alignas(64) float totals[kTileFloats], gate_totals[kTileFloats];
    Dequantization how = plain(up, call.up_bias, expert, panel);
    arrays.inputs.multiply(kernels, block, up.panel(expert, panel), totals);
    if (gated()) {
      arrays.inputs.multiply(kernels, block, gate.panel(expert, panel), gate_totals);
    } else {
      how.activation = call.activation;
    }
    const float* scales = arrays.inputs.scales(block.first);
    float* y = arrays.middle + block.first * inner() + panel * kPanelColumns;
    kernels.dequantize(totals, scales, block.rows, how, nullptr, y, inner());
    if (!gated()) return;
    kernels.dequantize(gate_totals, scales, block.rows, plain(gate, call.gate_bias, expert, panel),
                       nullptr, gate_totals, kPanelColumns);
    for (size_t i = 0; i < block.rows; ++i, y += inner()) {
      kernels.activate(call.activation, gate_totals + i * kPanelColumns, y, how.columns, y);
    }
  }

  // Tasks own columns of y, so each may add up the experts of a token alone.
  void lower() const {
    const size_t experts = arrays.groups.active_count();
    const size_t bytes = down.panel_bytes() * experts;
    const size_t panels = panels_per_task(down.panels(), bytes, rows_per_expert());
    parallel_for(execution, ceil_div(down.panels(), panels), [&](size_t task) {
      const size_t first = task * panels;
      const size_t last = first + panels < down.panels() ? first + panels : down.panels();
      for (size_t panel = first; panel < last; ++panel) {
        for (size_t index = 0; index < experts; ++index) {
          const ActiveExpert& active = arrays.groups.active(index);
          arrays.groups.for_blocks(active, kernels.tile_rows, [&](RowBlock block) {
            lower(active.expert, panel, block);
          });
        }
      }
    });
  }

  void lower(size_t expert, size_t panel, RowBlock block) const {
    alignas(64) float totals[kTileFloats];
    const Dequantization how = plain(down, call.down_bias, expert, panel);
    arrays.middles.multiply(kernels, block, down.panel(expert, panel), totals);
    kernels.dequantize(totals, arrays.middles.scales(block.first), block.rows, how, nullptr, totals,
                       kPanelColumns);
    for (size_t i = 0; i < block.rows; ++i) {
      const size_t place = arrays.groups.place(block.first + i);
      float* y = call.y + place / call.choices * width() + panel * kPanelColumns;
      kernels.accumulate(totals + i * kPanelColumns, call.gates[place], how.columns, y);
    }
  }

  static Dequantization plain(const PackedWeights& weights, const float* bias, size_t expert,
                              size_t panel) {
    const size_t column = expert * weights.columns() + panel * kPanelColumns;
    return {weights.scales(expert, panel), bias == nullptr ? nullptr : bias + column, 1.0f,
            DRL_ACTIVATION_NONE, weights.columns_of(panel)};
  }
};

bool same_shape(const PackedWeights& a, const PackedWeights& b) {
  return a.format() == b.format() && a.matrices() == b.matrices() && a.columns() == b.columns() &&
         a.depth() == b.depth();
}

drl_status open_weights(const drl_routed_ffn& call, PackedWeights* up, PackedWeights* gate,
                        PackedWeights* down) {
  const bool gated = call.gate.values != nullptr;
  drl_status status = PackedWeights::open(call.up, up);
  if (status == DRL_OK) status = PackedWeights::open(call.down, down);
  if (status == DRL_OK && gated) status = PackedWeights::open(call.gate, gate);
  if (status != DRL_OK) return status;
  if (down->matrices() != up->matrices() || down->columns() != up->depth() ||
      down->depth() != up->columns() || (gated && !same_shape(*up, *gate))) {
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
  if (status != DRL_OK || call.tokens == 0) return status;
  if (call.x == nullptr || call.y == nullptr || !exists(call.activation)) return DRL_BAD_ARGUMENT;
  const size_t values = call.tokens * up.depth(), choices = call.tokens * call.choices;
  const auto clear = [&] { std::memset(call.y, 0, values * sizeof(float)); };
  if (choices == 0) {
    clear();
  } else {
    if (call.expert_ids == nullptr || call.gates == nullptr) return DRL_BAD_ARGUMENT;
    if (workspace.data == nullptr || workspace.bytes < drl_routed_ffn_workspace_bytes(&call)) {
      return DRL_WORKSPACE_TOO_SMALL;
    }
    Carver carver(workspace);
    Arrays arrays = carve(carver, call);
    status = arrays.groups.sort(call.expert_ids, choices, kernels->tile_rows);
    if (status != DRL_OK) return status;
    clear();
    if (arrays.groups.active_count() > 0) {
      RoutedFfn{call, execution, *kernels, up, gate, down, arrays}.run();
    }
  }
  if (call.residual != nullptr) kernels->accumulate(call.residual, 1.0f, values, call.y);
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_routed_ffn_workspace_bytes(const drl_routed_ffn* layer) {
  drl::Carver carver;
  drl::carve(carver, *layer);
  return carver.bytes();
}

extern "C" drl_status drl_routed_ffn_run(const drl_routed_ffn* layer, drl_workspace workspace,
                                         const drl_execution* execution) {
  if (layer == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*layer, workspace, *execution);
}
