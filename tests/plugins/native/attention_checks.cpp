// Drives attention and the routing to experts under the sanitizers for memory, undefined behaviour
// and threads: `test_sanitizers.py`.
//
// Buffers are exactly as large as the interface asks for, so that one byte too many is noticed.
// Results are compared with a plain loop, and between instruction sets.
#include <cmath>

#include "checks.h"

namespace {

using Floats = std::vector<float>;

using Bytes = std::vector<int8_t>;

// The numbers that rows of int8 stand for; a row has two bytes with its scale behind `width` numbers.
Floats dequantized(const Bytes& rows, size_t width) {
  Floats values;
  for (size_t row = 0; row < rows.size(); row += width + 2) {
    const unsigned low = static_cast<uint8_t>(rows[row + width]);
    const int exponent = static_cast<uint8_t>(rows[row + width + 1]);
    const double scale = exponent == 0 ? 0 : std::ldexp(1 + low / 256.0, exponent - 127);
    for (size_t i = 0; i < width; ++i) values.push_back(static_cast<float>(rows[row + i] * scale));
  }
  return values;
}

// Rows of int8 from `count` random states of one head each.
Bytes draw_rows(size_t count, size_t width) {
  const Floats x = draw(count * width);
  Bytes rows(count * (width + 2));
  const drl_quantize_states call{1, count, 1, width, x.data(), rows.data()};
  const drl_execution execution{DRL_ISA_SCALAR, nullptr, nullptr};
  require(drl_quantize_states_run(&call, {}, &execution) == DRL_OK, "states are rounded");
  return rows;
}

// softmax(q · keysᵀ · scale + bias) · values in double precision, compared with y.
void check_mix(const float* q, const float* keys, const float* values, const float* bias,
               size_t slots, size_t width, float scale, const float* y) {
  std::vector<double> weights(slots);
  double largest = -1e300, sum = 0;
  for (size_t slot = 0; slot < slots; ++slot) {
    double score = 0;
    for (size_t i = 0; i < width; ++i) score += double(q[i]) * keys[slot * width + i];
    weights[slot] = score * scale + (bias == nullptr ? 0 : bias[slot]);
    largest = std::fmax(largest, weights[slot]);
  }
  for (double& weight : weights) sum += weight = std::exp(weight - largest);
  for (size_t i = 0; i < width; ++i) {
    double expected = 0;
    for (size_t slot = 0; slot < slots; ++slot) {
      expected += weights[slot] / sum * values[slot * width + i];
    }
    require(std::fabs(expected - y[i]) < 1e-4, "attention: near the plain loop");
  }
}

// A head's part of [rows, tokens, heads, width].
Floats of_head(const Floats& x, size_t row, size_t tokens, size_t heads, size_t head,
               size_t width) {
  Floats found;
  for (size_t token = 0; token < tokens; ++token) {
    const float* start = x.data() + ((row * tokens + token) * heads + head) * width;
    found.insert(found.end(), start, start + width);
  }
  return found;
}

void check_cached(size_t rows, size_t tokens, size_t kv_heads, size_t shared, size_t width,
                  size_t longest, bool with_bias) {
  std::vector<int32_t> lengths(rows);
  size_t slots = tokens;
  for (int32_t& length : lengths) {
    length = static_cast<int32_t>(below(longest + 1));
    if (length + tokens > slots) slots = length + tokens;
  }
  const size_t heads = kv_heads * shared, capacity = slots + below(3);
  const Floats q = draw(rows * tokens * heads * width), k = draw(rows * tokens * kv_heads * width);
  const Floats v = draw(k.size()), keys = draw(rows * kv_heads * capacity * width);
  const Floats values = draw(keys.size());
  const size_t bias_rows = below(2) == 0 ? 1 : rows;
  const Floats bias = draw(bias_rows * heads * tokens * slots);
  Floats first, new_keys, new_values;
  for (const drl_execution& execution : executions()) {
    Floats y(q.size());
    new_keys = keys;
    new_values = values;
    const drl_cached_attention call{rows,     tokens,   heads,    kv_heads,          width,
                                    capacity, 0.3f,     q.data(), k.data(),          v.data(),
                                    new_keys.data(),    new_values.data(),           lengths.data(),
                                    with_bias ? bias.data() : nullptr,               bias_rows,
                                    slots,    y.data()};
    Memory memory(drl_cached_attention_workspace_bytes(&call));
    require(drl_cached_attention_run(&call, memory.workspace(), &execution) == DRL_OK, "cached");
    if (first.empty()) first = y;
    require(same(y, first), "cached attention: the same bits everywhere");
  }
  for (size_t row = 0; row < rows; ++row) {
    for (size_t token = 0; token < tokens; ++token) {
      for (size_t head = 0; head < heads; ++head) {
        const size_t place = ((row * tokens + token) * heads + head) * width;
        const size_t offset = (row * kv_heads + head / shared) * capacity * width;
        const size_t own = bias_rows == 1 ? 0 : row;
        const float* added = bias.data() + ((own * heads + head) * tokens + token) * slots;
        check_mix(q.data() + place, new_keys.data() + offset, new_values.data() + offset,
                  with_bias ? added : nullptr, lengths[row] + token + 1, width, 0.3f,
                  first.data() + place);
      }
    }
  }
}

void check_rounding(size_t rows, size_t states, size_t heads, size_t width) {
  Floats x = draw(rows * states * heads * width);
  if (below(3) == 0) x[below(x.size())] = 0.0f / 0.0f;
  Bytes first;
  for (const drl_execution& execution : executions()) {
    Bytes y(rows * heads * states * (width + 2));
    const drl_quantize_states call{rows, states, heads, width, x.data(), y.data()};
    require(drl_quantize_states_run(&call, {}, &execution) == DRL_OK, "rounding");
    if (first.empty()) first = y;
    require(same(y, first), "rounding: the same bytes everywhere");
  }
  const Floats found = dequantized(first, width);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t row = i / (states * heads * width), state = i / (heads * width) % states;
    const size_t head = i / width % heads;
    const size_t place = ((row * heads + head) * states + state) * width + i % width;
    const float* own = x.data() + i / width * width;
    float largest = 0;
    bool finite = true;
    for (size_t k = 0; k < width; ++k) {
      largest = std::fmax(largest, std::fabs(own[k]));
      finite = finite && std::isfinite(own[k]);
    }
    require(!finite || std::fabs(found[place] - x[i]) <= largest / 252, "rounding: half a step");
  }
}

void check_quantized_cached(size_t rows, size_t tokens, size_t kv_heads, size_t shared,
                            size_t width, size_t longest) {
  std::vector<int32_t> lengths(rows);
  for (int32_t& length : lengths) length = static_cast<int32_t>(below(longest + 1));
  const size_t heads = kv_heads * shared, slots = longest + tokens, capacity = slots + below(3);
  const Floats q = draw(rows * tokens * heads * width), k = draw(rows * tokens * kv_heads * width);
  const Floats v = draw(k.size());
  const Bytes keys = draw_rows(rows * kv_heads * capacity, width);
  const Bytes values = draw_rows(rows * kv_heads * capacity, width);
  Floats first;
  Bytes new_keys, new_values;
  for (const drl_execution& execution : executions()) {
    Floats y(q.size());
    new_keys = keys;
    new_values = values;
    const drl_quantized_cached_attention call{
        rows,     tokens,   heads,    kv_heads,        width,
        capacity, 0.3f,     q.data(), k.data(),        v.data(),
        new_keys.data(),    new_values.data(),         lengths.data(),
        nullptr,  0,        slots,    y.data()};
    Memory memory(drl_quantized_cached_attention_workspace_bytes(&call));
    require(drl_quantized_cached_attention_run(&call, memory.workspace(), &execution) == DRL_OK,
            "cached, of int8");
    if (first.empty()) first = y;
    require(same(y, first), "cached attention of int8: the same bits everywhere");
  }
  const Floats all_keys = dequantized(new_keys, width), all_values = dequantized(new_values, width);
  for (size_t query = 0; query < rows * tokens * heads; ++query) {
    const size_t row = query / heads / tokens, token = query / heads % tokens;
    const size_t offset = (row * kv_heads + query % heads / shared) * capacity * width;
    check_mix(q.data() + query * width, all_keys.data() + offset, all_values.data() + offset,
              nullptr, lengths[row] + token + 1, width, 0.3f, first.data() + query * width);
  }
}

void check_quantized_cross(size_t sources, size_t beams, size_t kv_heads, size_t shared,
                           size_t width, size_t states) {
  const size_t heads = kv_heads * shared, rows = sources * beams;
  const Floats q = draw(rows * heads * width), bias = draw(sources * states);
  const Bytes keys = draw_rows(sources * kv_heads * states, width);
  const Bytes values = draw_rows(sources * kv_heads * states, width);
  Floats first;
  for (const drl_execution& execution : executions()) {
    Floats y(q.size());
    const drl_quantized_cross_attention call{
        rows,     sources,     1,             heads,       kv_heads, width, states, 0.3f,
        q.data(), keys.data(), values.data(), bias.data(), y.data()};
    Memory memory(drl_quantized_cross_attention_workspace_bytes(&call));
    require(drl_quantized_cross_attention_run(&call, memory.workspace(), &execution) == DRL_OK,
            "cross, of int8");
    if (first.empty()) first = y;
    require(same(y, first), "cross attention of int8: the same bits everywhere");
  }
  const Floats all_keys = dequantized(keys, width), all_values = dequantized(values, width);
  for (size_t query = 0; query < rows * heads; ++query) {
    const size_t source = query / heads / beams;
    const size_t offset = (source * kv_heads + query % heads / shared) * states * width;
    check_mix(q.data() + query * width, all_keys.data() + offset, all_values.data() + offset,
              bias.data() + source * states, states, width, 0.3f, first.data() + query * width);
  }
}

void check_cross(size_t sources, size_t beams, size_t tokens, size_t kv_heads, size_t shared,
                 size_t width, size_t states) {
  const size_t heads = kv_heads * shared, rows = sources * beams;
  const Floats q = draw(rows * tokens * heads * width);
  const Floats keys = draw(sources * kv_heads * states * width), values = draw(keys.size());
  Floats bias = draw(sources * states), first;
  for (size_t source = 0; source < sources; ++source) {
    const size_t length = 1 + below(states);
    for (size_t i = length; i < states; ++i) bias[source * states + i] = -1e4f;
  }
  for (const drl_execution& execution : executions()) {
    Floats y(q.size());
    const drl_cross_attention call{rows,        sources,       tokens,      kv_heads * shared,
                                   kv_heads,    width,         states,      0.3f,
                                   q.data(),    keys.data(),   values.data(), bias.data(),
                                   y.data()};
    Memory memory(drl_cross_attention_workspace_bytes(&call));
    require(drl_cross_attention_run(&call, memory.workspace(), &execution) == DRL_OK, "cross");
    if (first.empty()) first = y;
    require(same(y, first), "cross attention: the same bits everywhere");
  }
  for (size_t query = 0; query < rows * tokens * heads; ++query) {
    const size_t source = query / heads / tokens / beams;
    const size_t offset = (source * kv_heads + query % heads / shared) * states * width;
    check_mix(q.data() + query * width, keys.data() + offset, values.data() + offset,
              bias.data() + source * states, states, width, 0.3f, first.data() + query * width);
  }
}

void check_encoder(size_t rows, size_t tokens, size_t kv_heads, size_t shared, size_t width,
                   size_t farthest, bool with_bias) {
  const size_t heads = kv_heads * shared, distances = 2 * farthest + 1;
  const Floats q = draw(rows * tokens * heads * width), k = draw(rows * tokens * kv_heads * width);
  const Floats v = draw(k.size()), bias = draw(distances * heads);
  std::vector<int32_t> lengths(rows);
  for (int32_t& length : lengths) length = static_cast<int32_t>(below(tokens + 1));
  Floats first;
  for (const drl_execution& execution : executions()) {
    Floats y(q.size(), 1.0f);
    const drl_encoder_attention call{rows,     tokens,   heads,    kv_heads,       width,
                                     0.3f,     q.data(), k.data(), v.data(),       lengths.data(),
                                     with_bias ? bias.data() : nullptr, distances, y.data()};
    Memory memory(drl_encoder_attention_workspace_bytes(&call));
    require(drl_encoder_attention_run(&call, memory.workspace(), &execution) == DRL_OK, "encoder");
    if (first.empty()) first = y;
    require(same(y, first), "encoder attention: the same bits everywhere");
  }
  for (size_t row = 0; row < rows; ++row) {
    const size_t length = static_cast<size_t>(lengths[row]);
    for (size_t head = 0; head < heads; ++head) {
      const Floats keys = of_head(k, row, tokens, kv_heads, head / shared, width);
      const Floats values = of_head(v, row, tokens, kv_heads, head / shared, width);
      for (size_t token = 0; token < tokens; ++token) {
        const size_t place = ((row * tokens + token) * heads + head) * width;
        if (token >= length) {
          for (size_t i = 0; i < width; ++i) require(first[place + i] == 0, "0 at padding");
          continue;
        }
        Floats own(length);
        for (size_t j = 0; j < length; ++j) {
          const size_t last = distances - 1, before = token > farthest ? token - farthest : 0;
          const size_t far = j < before ? 0 : farthest + j - token;
          own[j] = bias[(far > last ? last : far) * heads + head];
        }
        check_mix(q.data() + place, keys.data(), values.data(), with_bias ? own.data() : nullptr,
                  length, width, 0.3f, first.data() + place);
      }
    }
  }
}

void check_route(size_t tokens, size_t depth, size_t groups, size_t members, size_t k) {
  const size_t experts = groups * members;
  const Floats x = draw(tokens * depth), weight = draw(depth * experts), bias = draw(experts);
  const Floats priors = draw(tokens * groups);
  std::vector<uint8_t> allowed(tokens * groups), mask(tokens);
  for (uint8_t& flag : allowed) flag = below(4) != 0;
  for (uint8_t& flag : mask) flag = below(5) != 0;
  std::vector<int32_t> first_ids;
  Floats first;
  for (const drl_execution& execution : executions()) {
    std::vector<int32_t> ids(tokens * k);
    Floats gates(tokens * k);
    const drl_expert_route call{tokens,        depth,       experts,     groups,    k,
                                x.data(),      weight.data(), bias.data(), 0.5f,    priors.data(),
                                allowed.data(), mask.data(), ids.data(),  gates.data()};
    Memory memory(drl_expert_route_workspace_bytes(&call));
    require(drl_expert_route_run(&call, memory.workspace(), &execution) == DRL_OK, "route");
    if (first.empty()) {
      first = gates;
      first_ids = ids;
    }
    require(same(gates, first) && same(ids, first_ids), "route: the same bits everywhere");
  }
  for (size_t token = 0; token < tokens; ++token) {
    double sum = 0;
    for (size_t i = 0; i < k; ++i) {
      sum += first[token * k + i];
      require(i == 0 || first[token * k + i] <= first[token * k + i - 1], "route: largest first");
      require((first_ids[token * k + i] < 0) == (mask[token] == 0), "route: padding has no expert");
    }
    require(sum < 1.0001 && (k < experts || mask[token] == 0 || sum > 0.9999), "route: gates");
  }
}

void check_refusals() {
  const Floats q = draw(8), k = draw(8), v = draw(8);
  Floats keys = draw(24), values = draw(24), y(8);
  std::vector<int32_t> lengths{2};
  drl_cached_attention call{1,        1,        1,        1,           8,              3,
                            1.0f,     q.data(), k.data(), v.data(),    keys.data(),    values.data(),
                            lengths.data(),     nullptr,  0,           3,              y.data()};
  const drl_execution execution{DRL_ISA_SCALAR, nullptr, nullptr};
  const Floats before = keys;
  Memory small(drl_cached_attention_workspace_bytes(&call) - 1);
  require(drl_cached_attention_run(&call, small.workspace(), &execution) ==
              DRL_WORKSPACE_TOO_SMALL,
          "a workspace that is too small");
  Memory memory(drl_cached_attention_workspace_bytes(&call));
  lengths[0] = 3;
  require(drl_cached_attention_run(&call, memory.workspace(), &execution) == DRL_CACHE_FULL,
          "a full cache");
  lengths[0] = -1;
  require(drl_cached_attention_run(&call, memory.workspace(), &execution) == DRL_BAD_ARGUMENT,
          "a negative length");
  lengths[0] = 2;
  call.slots = 2;
  require(drl_cached_attention_run(&call, memory.workspace(), &execution) == DRL_BAD_ARGUMENT,
          "fewer slots than tokens");
  require(same(keys, before), "a refused call writes nothing");
  require(drl_cross_attention_run(nullptr, {}, &execution) == DRL_BAD_ARGUMENT, "null");
  require(drl_quantized_cached_attention_run(nullptr, {}, &execution) == DRL_BAD_ARGUMENT, "null");
  require(drl_quantized_cross_attention_run(nullptr, {}, &execution) == DRL_BAD_ARGUMENT, "null");
  require(drl_quantize_states_run(nullptr, {}, &execution) == DRL_BAD_ARGUMENT, "null");
  require(drl_encoder_attention_run(nullptr, {}, &execution) == DRL_BAD_ARGUMENT, "null");
  const drl_encoder_attention encoder{1,        2,        1,          1,              4, 1.0f,
                                      q.data(), q.data(), q.data(),   lengths.data(), nullptr,
                                      0,        keys.data()};
  lengths[0] = 3;
  require(drl_encoder_attention_run(&encoder, memory.workspace(), &execution) == DRL_BAD_ARGUMENT,
          "a source longer than its tokens");
  lengths[0] = 2;
  require(drl_encoder_attention_run(&encoder, small.workspace(), &execution) ==
              DRL_WORKSPACE_TOO_SMALL,
          "a workspace that is too small");
  require(drl_expert_route_run(nullptr, {}, &execution) == DRL_BAD_ARGUMENT, "null");
}

}  // namespace

int main() {
  for (int round = 0; round < 100; ++round) {
    check_cached(1 + below(3), 1 + below(6), 1 + below(3), 1 + below(4), 1 + below(80), below(60),
                 below(2) == 0);
    check_cross(1 + below(3), 1 + below(4), 1 + below(3), 1 + below(3), 1 + below(3),
                1 + below(80), 1 + below(60));
    check_encoder(1 + below(3), 1 + below(140), 1 + below(3), 1 + below(3), 1 + below(80),
                  below(90), below(2) == 0);
    check_rounding(1 + below(3), 1 + below(20), 1 + below(4), 1 + below(80));
    check_quantized_cached(1 + below(3), 1 + below(6), 1 + below(3), 1 + below(4), 1 + below(80),
                           below(60));
    check_quantized_cross(1 + below(3), 1 + below(4), 1 + below(3), 1 + below(3), 1 + below(80),
                          1 + below(60));
    const size_t groups = 1 + below(4), members = 1 + below(20);
    check_route(1 + below(20), 1 + below(60), groups, members, 1 + below(groups * members));
  }
  // Large enough that the work is shared out, and that the queries of a head take several passes.
  check_cached(3, 1, 4, 2, 64, 300, false);
  check_cached(2, 40, 2, 2, 40, 90, true);
  check_cross(2, 4, 1, 4, 2, 64, 200);
  check_cross(1, 40, 2, 2, 1, 24, 70);
  check_encoder(2, 250, 4, 2, 64, 128, true);
  check_encoder(1, 800, 1, 1, 8, 40, true);
  check_rounding(4, 300, 4, 64);
  check_quantized_cached(3, 1, 4, 2, 64, 1500);
  check_quantized_cached(2, 40, 2, 2, 40, 90);
  check_quantized_cross(2, 4, 4, 2, 64, 1500);
  check_route(40, 512, 4, 16, 3);
  check_refusals();
  std::puts("all checks hold");
}
