// Drives the linears, the heads, the routed layers and the gather under the sanitizers for memory,
// undefined behaviour and threads.
//
// Buffers are exactly as large as the interface asks for. Results are compared with a plain loop,
// and between instruction sets.
#include <cmath>

#include "checks.h"

namespace {

// Packed weights of all values there are.
struct Packed {
  Packed(drl_format format, size_t matrices, size_t columns, size_t depth)
      : values(drl_values_bytes(format, matrices, columns, depth)),
        multipliers(drl_multipliers_bytes(format, matrices, columns, depth)),
        scales(drl_scales_bytes(format, matrices, columns, depth) / sizeof(float)),
        shape{format, matrices, columns, depth, nullptr, nullptr, nullptr} {
    for (uint8_t& value : values) value = static_cast<uint8_t>(1 + below(255));
    for (uint8_t& value : multipliers) value = static_cast<uint8_t>(below(256));
    for (float& scale : scales) scale = 0.001f * static_cast<float>(1 + below(9));
  }

  drl_weights view() const {
    drl_weights weights = shape;
    weights.values = values.data();
    weights.multipliers = multipliers.empty() ? nullptr : multipliers.data();
    weights.scales = scales.data();
    return weights;
  }

  // Weight (column, k) of a matrix, as the header of packed_weights.h says.
  double weight(size_t matrix, size_t column, size_t k) const {
    const size_t panels = (shape.columns + 31) / 32, panel = matrix * panels + column / 32;
    const double scale = scales[panel * 32 + column % 32];
    if (shape.format == DRL_FORMAT_INT8) {
      const size_t quads = (shape.depth + 3) / 4;
      const size_t place = ((panel * quads + k / 4) * 32 + column % 32) * 4 + k % 4;
      return (values[place] - 128) * scale;
    }
    const size_t blocks = (shape.depth + 31) / 32, block = panel * blocks + k / 32;
    const double step = multipliers[block * 32 + column % 32] * scale;
    if (shape.format == DRL_FORMAT_INT8_BLOCK) {
      return (values[((block * 8 + k % 32 / 4) * 32 + column % 32) * 4 + k % 4] - 128) * step;
    }
    const size_t half = k % 32 % 16;
    const int pair = values[((block * 4 + half / 4) * 32 + column % 32) * 4 + half % 4];
    const int q = (k % 32 < 16 ? pair & 15 : pair >> 4) - 8;
    return q * step;
  }

  std::vector<uint8_t> values, multipliers;
  std::vector<float> scales;
  drl_weights shape;
};

drl_format any_format() { return static_cast<drl_format>(below(3)); }

// The sum in double, and how far from it a product with quantised rows may be.
void require_near(const Packed& packed, size_t column, const float* x, double factor,
                  double found) {
  double sum = 0, largest = 0, size = 0;
  for (size_t k = 0; k < packed.shape.depth; ++k) {
    const double weight = packed.weight(0, column, k);
    sum += x[k] * weight;
    size += std::fabs(weight);
    largest = std::fmax(largest, std::fabs(x[k]));
  }
  const double allowed = factor * (size * largest / 254 * 1.001 + std::fabs(sum) * 1e-5);
  require(std::fabs(found - sum * factor) <= allowed + 1e-4, "near the plain loop");
}

void check_linear(drl_format format, size_t columns, size_t depth, size_t rows) {
  const Packed packed(format, 1, columns, depth);
  const std::vector<float> x = draw(rows * depth);
  std::vector<float> first;
  for (const drl_execution& execution : executions()) {
    std::vector<float> y(rows * columns);
    drl_linear call{};
    call.weights = packed.view();
    call.rows = {x.data(), rows, nullptr, 0.0f};
    call.outputs[0] = {y.data(), columns};
    Memory memory(drl_linear_workspace_bytes(&call));
    require(drl_linear_run(&call, memory.workspace(), &execution) == DRL_OK, "linear");
    if (first.empty()) first = y;
    require(same(y, first), "linear: the same bits everywhere");
  }
  for (size_t row = 0; row < rows; ++row) {
    for (size_t column = 0; column < columns; ++column) {
      require_near(packed, column, x.data() + row * depth, 1.0, first[row * columns + column]);
    }
  }
}

// Norm, bias, residual, activation, gate and split outputs, compared between instruction sets.
void check_dressed_linear(size_t columns, size_t depth, size_t rows) {
  const size_t matrices = 1 + below(2), cut = below(columns + 1), other = below(columns - cut + 1);
  const bool split = below(2) == 0;
  const Packed packed(any_format(), matrices, columns, depth);
  const std::vector<float> x = draw(rows * depth), norm = draw(depth);
  const std::vector<float> bias = draw(matrices * columns), residual = draw(rows * columns);
  std::vector<float> first;
  for (const drl_execution& execution : executions()) {
    std::vector<float> parts[3];
    const size_t widths[3] = {split ? cut : columns, split ? other : 0,
                              split ? columns - cut - other : 0};
    drl_linear call{};
    call.weights = packed.view();
    call.rows = {x.data(), rows, norm.data(), 1e-6f};
    call.bias = bias.data();
    if (!split) call.residual = residual.data();
    call.activation = DRL_ACTIVATION_SILU;
    std::vector<float> all;
    for (size_t i = 0; i < 3; ++i) {
      parts[i].resize(rows * widths[i]);
      call.outputs[i] = {parts[i].data(), widths[i]};
    }
    Memory memory(drl_linear_workspace_bytes(&call));
    require(drl_linear_run(&call, memory.workspace(), &execution) == DRL_OK, "dressed linear");
    for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
    if (first.empty()) first = all;
    require(same(all, first), "dressed linear: the same bits everywhere");
  }
}

// x · weight + bias of a column, in double, and how far from it a sum of floats may be.
struct Sum {
  double value, allowed;
};

Sum float_sum(const double* x, const float* weight, size_t stride, size_t depth, float bias) {
  double sum = bias, size = std::fabs(sum);
  for (size_t k = 0; k < depth; ++k) {
    const double product = x[k] * weight[k * stride];
    sum += product;
    size += std::fabs(product);
  }
  return {sum, size * 1e-5 + 1e-6};
}

std::vector<double> normalized(const float* x, const float* norm, size_t depth) {
  std::vector<double> y(x, x + depth);
  if (norm == nullptr) return y;
  double squares = 0;
  for (double value : y) squares += value * value;
  const double factor = 1 / std::sqrt(squares / static_cast<double>(depth) + 1e-3);
  for (size_t k = 0; k < depth; ++k) y[k] *= factor * norm[k];
  return y;
}

// With everything that may come before and after the products, or some of it. Weights that follow
// the last ones are asked for ahead, and must not be read; numbers stand where padding lies.
void check_float_linear(size_t columns, size_t depth, size_t rows) {
  constexpr size_t kPanel = DRL_FLOAT_PANEL;
  const size_t matrices = 1 + below(2), panels = (columns + kPanel - 1) / kPanel;
  const bool normed = below(2) == 0, biased = below(2) == 0, split = below(2) == 0;
  const bool added = !split && below(2) == 0;
  const size_t cut = below(columns + 1), other = below(columns - cut + 1);
  const size_t widths[3] = {split ? cut : columns, split ? other : 0,
                            split ? columns - cut - other : 0};
  const std::vector<float> x = draw(rows * depth), norm = draw(depth);
  const std::vector<float> weights = draw(matrices * panels * depth * kPanel);
  const std::vector<float> bias = draw(matrices * columns), residual = draw(rows * columns);
  std::vector<float> first;
  for (const drl_execution& execution : executions()) {
    std::vector<float> parts[3], all;
    drl_float_linear call{};
    call.matrices = matrices;
    call.columns = columns;
    call.depth = depth;
    call.weights = weights.data();
    call.rows = {x.data(), rows, normed ? norm.data() : nullptr, 1e-3f};
    call.bias = biased ? bias.data() : nullptr;
    call.residual = added ? residual.data() : nullptr;
    call.activation = DRL_ACTIVATION_RELU;
    for (size_t i = 0; i < 3; ++i) {
      parts[i].resize(rows * widths[i]);
      call.outputs[i] = {parts[i].data(), widths[i]};
    }
    Memory memory(drl_float_linear_workspace_bytes(&call));
    require(drl_float_linear_run(&call, memory.workspace(), &execution) == DRL_OK, "float linear");
    for (size_t row = 0; row < rows; ++row) {
      for (size_t i = 0; i < 3; ++i) {
        const auto start = parts[i].begin() + static_cast<std::ptrdiff_t>(row * widths[i]);
        all.insert(all.end(), start, start + static_cast<std::ptrdiff_t>(widths[i]));
      }
    }
    if (first.empty()) first = all;
    require(same(all, first), "float linear: the same bits everywhere");
  }
  for (size_t row = 0; row < rows; ++row) {
    const std::vector<double> own =
        normalized(x.data() + row * depth, normed ? norm.data() : nullptr, depth);
    for (size_t column = 0; column < columns; ++column) {
      Sum sums[2];
      for (size_t matrix = 0; matrix < matrices; ++matrix) {
        const size_t panel = matrix * panels + column / kPanel;
        const float* weight = weights.data() + panel * depth * kPanel + column % kPanel;
        sums[matrix] = float_sum(own.data(), weight, kPanel, depth,
                                 biased ? bias[matrix * columns + column] : 0.0f);
      }
      double right = std::fmax(sums[0].value, 0), allowed = sums[0].allowed;
      if (matrices == 2) {
        allowed = allowed * (std::fabs(sums[1].value) + sums[1].allowed) + right * sums[1].allowed;
        right *= sums[1].value;
      }
      const size_t place = row * columns + column;
      if (added) right += residual[place];
      require(std::fabs(first[place] - right) <= allowed + std::fabs(right) * 1e-6,
              "float linear: near the plain loop");
    }
  }
}

void check_head(drl_format format, size_t columns, size_t depth, size_t rows, size_t k) {
  const Packed packed(format, 1, columns, depth);
  const std::vector<float> x = draw(rows * depth);
  const bool written = below(2) == 0;
  std::vector<float> first_values, first_normalisers;
  for (const drl_execution& execution : executions()) {
    std::vector<float> values(rows * k), normalisers(rows), logits(rows * columns);
    std::vector<int32_t> ids(rows * k);
    drl_head call{};
    call.weights = packed.view();
    call.rows = {x.data(), rows, nullptr, 0.0f};
    call.factor = 0.5f;
    call.logits = written ? logits.data() : nullptr;
    call.k = k;
    call.values = values.data();
    call.ids = ids.data();
    call.normalisers = normalisers.data();
    Memory memory(drl_head_workspace_bytes(&call));
    require(drl_head_run(&call, memory.workspace(), &execution) == DRL_OK, "head");
    if (first_normalisers.empty()) first_values = values, first_normalisers = normalisers;
    require(same(values, first_values), "head: the same values everywhere");
    require(same(normalisers, first_normalisers), "head: the same normalisers everywhere");
    for (size_t i = 0; i < ids.size(); ++i) {
      const size_t row = i / k, id = static_cast<size_t>(ids[i]);
      require((i + 1) % k == 0 || values[i] >= values[i + 1], "head: the largest first");
      require_near(packed, id, x.data() + row * depth, 0.5, values[i]);
      require(!written || logits[row * columns + id] == values[i], "head: values are logits");
      require(values[i] <= normalisers[row] + 1e-3f, "head: no logit is above the normaliser");
    }
  }
}

// A column that follows the last one is asked for ahead, and must not be read.
void check_float_head(size_t columns, size_t depth, size_t rows, size_t k) {
  const std::vector<float> x = draw(rows * depth), weight = draw(columns * depth);
  const std::vector<float> bias = draw(columns);
  const bool written = below(2) == 0;
  std::vector<float> first_values, first_normalisers;
  for (const drl_execution& execution : executions()) {
    std::vector<float> values(rows * k), normalisers(rows), logits(rows * columns);
    std::vector<int32_t> ids(rows * k);
    drl_float_head call{};
    call.rows = rows;
    call.depth = depth;
    call.columns = columns;
    call.x = x.data();
    call.weight = weight.data();
    call.bias = bias.data();
    call.factor = 0.5f;
    call.logits = written ? logits.data() : nullptr;
    call.k = k;
    call.values = values.data();
    call.ids = ids.data();
    call.normalisers = normalisers.data();
    Memory memory(drl_float_head_workspace_bytes(&call));
    require(drl_float_head_run(&call, memory.workspace(), &execution) == DRL_OK, "float head");
    if (first_normalisers.empty()) first_values = values, first_normalisers = normalisers;
    require(same(values, first_values), "float head: the same values everywhere");
    require(same(normalisers, first_normalisers), "float head: the same normalisers everywhere");
    for (size_t i = 0; i < ids.size(); ++i) {
      const size_t row = i / k, id = static_cast<size_t>(ids[i]);
      double sum = 0, size = 0;
      for (size_t j = 0; j < depth; ++j) {
        const double product = double{x[row * depth + j]} * weight[id * depth + j];
        sum += product;
        size += std::fabs(product);
      }
      require(std::fabs(values[i] - (sum * 0.5 + bias[id])) <= size * 1e-5 + 1e-5,
              "float head: near the plain loop");
      require((i + 1) % k == 0 || values[i] >= values[i + 1], "float head: the largest first");
      require(!written || logits[row * columns + id] == values[i], "float head: values are logits");
    }
  }
}

void check_routed(size_t experts, size_t inner, size_t width, size_t tokens, size_t choices) {
  const drl_format format = any_format();
  const bool gated = below(2) == 0;
  const Packed up(format, experts, inner, width), gate(format, experts, inner, width);
  const Packed down(any_format(), experts, width, inner);
  const std::vector<float> x = draw(tokens * width), gates = draw(tokens * choices);
  const std::vector<float> bias = draw(experts * (inner + width)), residual = draw(tokens * width);
  std::vector<int32_t> ids(tokens * choices);
  for (int32_t& id : ids) id = static_cast<int32_t>(below(experts + 1)) - 1;
  std::vector<float> first;
  for (const drl_execution& execution : executions()) {
    std::vector<float> y(tokens * width);
    drl_routed_ffn call{};
    call.up = up.view();
    if (gated) call.gate = gate.view();
    call.down = down.view();
    call.up_bias = call.gate_bias = bias.data();
    call.down_bias = bias.data() + experts * inner;
    call.activation = DRL_ACTIVATION_GELU;
    call.x = x.data();
    call.expert_ids = ids.data();
    call.gates = gates.data();
    call.tokens = tokens;
    call.choices = choices;
    call.residual = residual.data();
    call.y = y.data();
    Memory memory(drl_routed_ffn_workspace_bytes(&call));
    require(drl_routed_ffn_run(&call, memory.workspace(), &execution) == DRL_OK, "routed layer");
    if (first.empty()) first = y;
    require(same(y, first), "routed layer: the same bits everywhere");
  }
}

// Weights that follow the last ones are asked for ahead, and must not be read.
void check_float_routed(size_t experts, size_t inner, size_t width, size_t tokens, size_t choices) {
  const bool gated = below(2) == 0;
  const std::vector<float> up = draw(experts * width * inner), gate = draw(up.size());
  const std::vector<float> down = draw(up.size()), x = draw(tokens * width);
  const std::vector<float> gates = draw(tokens * choices), bias = draw(experts * (inner + width));
  std::vector<int32_t> ids(tokens * choices);
  for (int32_t& id : ids) id = static_cast<int32_t>(below(experts + 1)) - 1;
  std::vector<float> first;
  for (const drl_execution& execution : executions()) {
    std::vector<float> y(tokens * width);
    drl_float_routed_ffn call{};
    call.tokens = tokens;
    call.choices = choices;
    call.experts = experts;
    call.width = width;
    call.inner = inner;
    call.x = x.data();
    call.expert_ids = ids.data();
    call.gates = gates.data();
    call.up = up.data();
    if (gated) call.gate = gate.data();
    call.down = down.data();
    call.up_bias = call.gate_bias = bias.data();
    call.down_bias = bias.data() + experts * inner;
    call.activation = DRL_ACTIVATION_GELU;
    call.y = y.data();
    Memory memory(drl_float_routed_ffn_workspace_bytes(&call));
    require(drl_float_routed_ffn_run(&call, memory.workspace(), &execution) == DRL_OK,
            "float routed layer");
    if (first.empty()) first = y;
    require(same(y, first), "float routed layer: the same bits everywhere");
  }
}

void check_gather(size_t columns, size_t depth) {
  const Packed packed(below(2) == 0 ? DRL_FORMAT_INT8 : DRL_FORMAT_INT8_BLOCK, 1, columns, depth);
  std::vector<int64_t> ids(70);
  for (int64_t& id : ids) id = static_cast<int64_t>(below(columns));
  std::vector<float> y(ids.size() * depth);
  const drl_weights weights = packed.view();
  for (const drl_execution& execution : executions()) {
    y.assign(y.size(), 1e30f);
    require(drl_gather_rows(&weights, ids.data(), ids.size(), y.data(), &execution) == DRL_OK,
            "gather");
  }
  for (size_t i = 0; i < y.size(); ++i) {
    const double weight = packed.weight(0, static_cast<size_t>(ids[i / depth]), i % depth);
    require(std::fabs(y[i] - weight) <= 1e-6 * std::fabs(weight), "gather: the weights themselves");
  }
  ids[7] = static_cast<int64_t>(columns);
  const drl_execution serial{DRL_ISA_SCALAR, nullptr, nullptr};
  require(drl_gather_rows(&weights, ids.data(), ids.size(), y.data(), &serial) == DRL_NO_SUCH_ROW,
          "gather: no such row");
}

void check_float_routed_refusals(const drl_execution& execution) {
  const std::vector<float> numbers = draw(2 * 5 * 7), before = draw(7);
  std::vector<float> y = before;
  int32_t id = 1;
  drl_float_routed_ffn call{};
  call.tokens = call.choices = 1;
  call.experts = 2;
  call.width = 7;
  call.inner = 5;
  call.x = call.gates = call.up = call.down = numbers.data();
  call.expert_ids = &id;
  call.y = y.data();
  Memory enough(drl_float_routed_ffn_workspace_bytes(&call));
  Memory small(drl_float_routed_ffn_workspace_bytes(&call) - 1);
  require(drl_float_routed_ffn_run(&call, small.workspace(), &execution) ==
              DRL_WORKSPACE_TOO_SMALL,
          "a workspace that is too small");
  for (int odd = 0; odd < 8; ++odd) {
    drl_float_routed_ffn wrong = call;
    if (odd == 0) wrong.width = 0;
    if (odd == 1) wrong.inner = 0;
    if (odd == 2) wrong.x = nullptr;
    if (odd == 3) wrong.gates = nullptr;
    if (odd == 4) wrong.up = nullptr;
    if (odd == 5) wrong.down = reinterpret_cast<const float*>(1);
    if (odd == 6) wrong.expert_ids = nullptr;
    if (odd == 7) wrong.activation = static_cast<drl_activation>(5);
    require(drl_float_routed_ffn_run(&wrong, enough.workspace(), &execution) == DRL_BAD_ARGUMENT,
            "an impossible argument of a routed layer");
  }
  for (int32_t none : {-2, 2}) {
    id = none;
    require(drl_float_routed_ffn_run(&call, enough.workspace(), &execution) == DRL_NO_SUCH_EXPERT,
            "no such expert");
  }
  require(same(y, before), "a refused call writes nothing");
  require(drl_float_routed_ffn_run(nullptr, {}, &execution) == DRL_BAD_ARGUMENT, "null");
}

void check_float_linear_refusals(const drl_execution& execution) {
  const std::vector<float> numbers = draw(2 * 2 * 7 * DRL_FLOAT_PANEL), before = draw(2 * 70);
  std::vector<float> y = before;
  drl_float_linear call{};
  call.matrices = 2;
  call.columns = 70;
  call.depth = 7;
  call.weights = numbers.data();
  call.rows = {numbers.data(), 2, numbers.data(), 0.0f};
  call.outputs[0] = {y.data(), 70};
  Memory enough(drl_float_linear_workspace_bytes(&call));
  Memory small(drl_float_linear_workspace_bytes(&call) - 1);
  require(drl_float_linear_run(&call, small.workspace(), &execution) == DRL_WORKSPACE_TOO_SMALL &&
              drl_float_linear_run(&call, {nullptr, 1 << 20}, &execution) ==
                  DRL_WORKSPACE_TOO_SMALL,
          "a workspace that is too small");
  for (int odd = 0; odd < 10; ++odd) {
    drl_float_linear wrong = call;
    if (odd == 0) wrong.columns = 0;
    if (odd == 1) wrong.depth = 0;
    if (odd == 2) wrong.rows.x = nullptr;
    if (odd == 3) wrong.weights = nullptr;
    if (odd == 4) wrong.weights = reinterpret_cast<const float*>(1);
    if (odd == 5) wrong.activation = static_cast<drl_activation>(5);
    if (odd == 6) wrong.outputs[0].y = nullptr;
    if (odd == 7) wrong.outputs[0].columns = 71;
    if (odd == 8) wrong.outputs[1] = {y.data(), SIZE_MAX};
    if (odd == 9) {
      wrong.residual = numbers.data();
      wrong.outputs[0].columns = 69;
      wrong.outputs[1] = {y.data(), 1};
    }
    require(drl_float_linear_run(&wrong, enough.workspace(), &execution) == DRL_BAD_ARGUMENT,
            "an impossible argument of a linear");
  }
  for (int odd = 0; odd < 5; ++odd) {
    drl_float_linear wrong = call;
    if (odd == 0) wrong.matrices = 0;
    if (odd == 1) wrong.matrices = 3;
    if (odd == 2) wrong.outputs[0].columns = 69;
    if (odd == 3) wrong.outputs[1] = {y.data(), 1};
    if (odd == 4) wrong.outputs[0].columns = 0;
    require(drl_float_linear_run(&wrong, enough.workspace(), &execution) == DRL_SHAPES_DIFFER,
            "columns or matrices that do not fit");
  }
  require(same(y, before), "a refused call writes nothing");
  require(drl_float_linear_run(nullptr, {}, &execution) == DRL_BAD_ARGUMENT &&
              drl_float_linear_run(&call, enough.workspace(), nullptr) == DRL_BAD_ARGUMENT,
          "null");
  call.rows.norm = nullptr;
  require(drl_float_linear_run(&call, {}, &execution) == DRL_OK, "no norm needs no workspace");
}

void check_routed_refusals(const drl_execution& execution) {
  const Packed up(DRL_FORMAT_INT8, 2, 5, 7), down(DRL_FORMAT_INT8, 2, 7, 5);
  const std::vector<float> x = draw(7), gates = draw(1), before = draw(7);
  std::vector<float> y = before;
  int32_t id = 2;
  drl_routed_ffn call{};
  call.up = up.view();
  call.down = down.view();
  call.x = x.data();
  call.expert_ids = &id;
  call.gates = gates.data();
  call.tokens = call.choices = 1;
  call.y = y.data();
  Memory memory(drl_routed_ffn_workspace_bytes(&call));
  require(drl_routed_ffn_run(&call, memory.workspace(), &execution) == DRL_NO_SUCH_EXPERT,
          "no such expert");
  id = 1;
  call.activation = static_cast<drl_activation>(5);
  require(drl_routed_ffn_run(&call, memory.workspace(), &execution) == DRL_BAD_ARGUMENT,
          "no such activation");
  require(same(y, before), "a refused call writes nothing");
}

void check_refusals() {
  const Packed packed(DRL_FORMAT_INT4, 1, 40, 9);
  const drl_execution execution{DRL_ISA_SCALAR, nullptr, nullptr};
  const std::vector<float> x = draw(18);
  std::vector<float> y(80), normalisers(2);
  drl_linear linear{};
  linear.weights = packed.view();
  linear.rows = {x.data(), 2, nullptr, 0.0f};
  linear.outputs[0] = {y.data(), 40};
  drl_head head{};
  head.weights = packed.view();
  head.rows = linear.rows;
  head.normalisers = normalisers.data();
  Memory small(drl_linear_workspace_bytes(&linear) - 1), less(drl_head_workspace_bytes(&head) - 1);
  require(drl_linear_run(&linear, small.workspace(), &execution) == DRL_WORKSPACE_TOO_SMALL &&
              drl_head_run(&head, less.workspace(), &execution) == DRL_WORKSPACE_TOO_SMALL,
          "a workspace that is too small");
  Memory memory(drl_linear_workspace_bytes(&linear));
  for (int odd = 0; odd < 6; ++odd) {
    drl_linear call = linear;
    if (odd == 0) call.weights.multipliers = nullptr;
    if (odd == 1) call.weights.scales = nullptr;
    if (odd == 2) call.rows.x = nullptr;
    if (odd == 3) call.outputs[0].y = nullptr;
    if (odd == 4) call.weights.depth = 131073;
    if (odd == 5) call.activation = static_cast<drl_activation>(5);
    require(drl_linear_run(&call, memory.workspace(), &execution) == DRL_BAD_ARGUMENT,
            "an impossible argument");
  }
  drl_float_head plain{};
  plain.rows = plain.depth = 2;
  plain.columns = 40;
  plain.x = plain.weight = y.data();
  plain.normalisers = normalisers.data();
  Memory enough(drl_float_head_workspace_bytes(&plain));
  Memory short_by_one(drl_float_head_workspace_bytes(&plain) - 1);
  require(drl_float_head_run(&plain, short_by_one.workspace(), &execution) ==
              DRL_WORKSPACE_TOO_SMALL,
          "a workspace that is too small");
  for (int odd = 0; odd < 6; ++odd) {
    drl_float_head call = plain;
    if (odd == 0) call.depth = 0;
    if (odd == 1) call.columns = 0;
    if (odd == 2) call.x = nullptr;
    if (odd == 3) call.normalisers = nullptr;
    if (odd == 4) call.k = 3;  // without values
    if (odd == 5) call.weight = reinterpret_cast<const float*>(1);
    require(drl_float_head_run(&call, enough.workspace(), &execution) == DRL_BAD_ARGUMENT,
            "an impossible argument of a head");
  }
  require(drl_float_head_run(nullptr, {}, &execution) == DRL_BAD_ARGUMENT, "null");
  check_float_routed_refusals(execution);
  check_float_linear_refusals(execution);
  head.k = 3;
  require(drl_head_run(&head, memory.workspace(), &execution) == DRL_BAD_ARGUMENT, "no values");
  require(drl_linear_run(nullptr, {}, &execution) == DRL_BAD_ARGUMENT, "null");
  check_routed_refusals(execution);
}

}  // namespace

int main() {
  for (drl_format format : {DRL_FORMAT_INT8, DRL_FORMAT_INT4, DRL_FORMAT_INT8_BLOCK}) {
    for (size_t rows = 0; rows < 30; ++rows) check_linear(format, 37, 70, rows);
    // Large enough that the work is shared out.
    check_linear(format, 1500, 300, 1);
    check_linear(format, 1500, 300, 30);
    check_linear(format, 70, 300, 300);
    check_head(format, 3000, 300, 20, 50);
  }
  for (int round = 0; round < 150; ++round) {
    check_linear(any_format(), 1 + below(140), 1 + below(300), below(30));
    check_dressed_linear(1 + below(140), 1 + below(300), below(30));
    check_float_linear(1 + below(200), 1 + below(300), below(30));
    const size_t columns = 1 + below(300);
    check_head(any_format(), columns, 1 + below(90), below(20), below(columns + 1));
    check_float_head(columns, 1 + below(90), below(20), below(columns + 1));
    check_routed(1 + below(9), 1 + below(90), 1 + below(70), below(40), below(5));
    check_float_routed(1 + below(9), 1 + below(90), 1 + below(70), below(40), below(5));
    check_gather(1 + below(100), 1 + below(100));
  }
  for (size_t rows : {1, 20, 200}) check_float_linear(1030, 260, rows);
  for (size_t rows : {95, 96, 97, 193}) check_float_linear(130, 40, rows);
  for (size_t rows : {1, 2, 20}) check_float_head(1501, 130, rows, 5);
  check_routed(5, 600, 260, 1, 2);
  check_routed(5, 600, 260, 130, 2);
  for (size_t tokens : {1, 9, 250}) check_float_routed(3, 600, 330, tokens, 2);
  check_refusals();
  std::puts("all checks hold");
}
