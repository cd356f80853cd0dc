// Drives the C interface under the sanitizers for memory, undefined behaviour and threads:
// `make sanitize`.
//
// Buffers are exactly as large as the interface asks for, so that one byte too many is noticed.
// Results are compared with a plain loop, and between instruction sets.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../../../plugins/native/src/drl_native.h"

namespace {

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

std::mt19937 generator(7);

std::vector<float> draw(size_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

size_t below(size_t limit) { return generator() % limit; }

std::vector<drl_isa> available() {
  std::vector<drl_isa> found;
  for (const char* name : {"scalar", "avx2", "avx512vnni"}) {
    drl_isa isa;
    if (drl_isa_by_name(name, &isa) == DRL_OK) {
      found.push_back(isa);
      std::printf("%s\n", name);
    }
  }
  return found;
}

std::vector<unsigned char> pack(const std::vector<float>& weights, const drl_packed_shape& shape) {
  std::vector<unsigned char> packed(drl_packed_bytes(&shape));
  require(drl_pack(weights.data(), &shape, packed.data(), packed.size()) == DRL_OK, "packing");
  return packed;
}

drl_packed view(const std::vector<unsigned char>& packed) { return {packed.data(), packed.size()}; }

void on_two_threads(void*, size_t count, drl_task task, void* state) {
  std::thread other([=] {
    for (size_t index = 1; index < count; index += 2) task(state, index);
  });
  for (size_t index = 0; index < count; index += 2) task(state, index);
  other.join();
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

void check_linear(drl_packed_shape shape, size_t rows, const std::vector<drl_isa>& isas) {
  const std::vector<float> weights = draw(shape.columns * shape.depth);
  const std::vector<float> x = draw(rows * shape.depth), bias = draw(shape.columns);
  const std::vector<unsigned char> packed = pack(weights, shape);
  std::vector<unsigned char> memory(drl_linear_workspace_bytes(&shape, rows));
  std::vector<float> first;
  for (drl_isa isa : isas) {
    for (drl_parallel_for run : {drl_parallel_for{nullptr}, drl_parallel_for{on_two_threads}}) {
      std::vector<float> y(rows * shape.columns);
      const drl_linear call{view(packed), bias.data(), DRL_ACTIVATION_NONE, x.data(), rows,
                            y.data()};
      const drl_execution execution{isa, run, nullptr};
      const drl_workspace workspace{memory.data(), memory.size()};
      require(drl_linear_int8(&call, workspace, &execution) == DRL_OK, "linear");
      if (first.empty()) first = y;
      require(same(y, first), "linear: the same bits everywhere");
    }
  }
  for (size_t row = 0; row < rows; ++row) {
    for (size_t column = 0; column < shape.columns; ++column) {
      double sum = bias[column], size = 0;
      for (size_t k = 0; k < shape.depth; ++k) {
        const double product = x[row * shape.depth + k] * weights[column * shape.depth + k];
        sum += product;
        size += std::fabs(product);
      }
      const double error = std::fabs(first[row * shape.columns + column] - sum);
      require(error <= 0.05 * size + 0.05, "linear: near the plain loop");
    }
  }
}

void check_top_k(drl_packed_shape shape, size_t rows, size_t k, const std::vector<drl_isa>& isas) {
  const std::vector<float> x = draw(rows * shape.depth), bias = draw(shape.columns);
  const std::vector<unsigned char> packed = pack(draw(shape.columns * shape.depth), shape);
  std::vector<unsigned char> memory(drl_top_k_workspace_bytes(&shape, rows, k));
  std::vector<float> first;
  for (drl_isa isa : isas) {
    for (drl_parallel_for run : {drl_parallel_for{nullptr}, drl_parallel_for{on_two_threads}}) {
      std::vector<float> values(rows * k);
      std::vector<int32_t> ids(rows * k);
      const drl_top_k call{view(packed), bias.data(), x.data(), rows, k, values.data(), ids.data()};
      const drl_execution execution{isa, run, nullptr};
      const drl_workspace workspace{memory.data(), memory.size()};
      require(drl_top_k_int8(&call, workspace, &execution) == DRL_OK, "top k");
      if (first.empty()) first = values;
      require(same(values, first), "top k: the same bits everywhere");
      for (size_t i = 0; i + 1 < ids.size(); ++i) {
        require((i + 1) % k == 0 || values[i] >= values[i + 1], "top k: the largest first");
      }
    }
  }
}

void check_routed(drl_packed_shape up, size_t tokens, size_t choices, bool gated,
                  const std::vector<drl_isa>& isas) {
  const drl_packed_shape down{up.matrices, up.depth, up.columns};
  const size_t weights = up.matrices * up.columns * up.depth;
  const auto up_packed = pack(draw(weights), up), gate_packed = pack(draw(weights), up);
  const auto down_packed = pack(draw(weights), down);
  const std::vector<float> x = draw(tokens * up.depth), gates = draw(tokens * choices);
  const std::vector<float> bias = draw(up.matrices * (up.columns + up.depth));
  std::vector<int32_t> ids(tokens * choices);
  for (int32_t& id : ids) id = static_cast<int32_t>(below(up.matrices + 1)) - 1;
  std::vector<unsigned char> memory(drl_routed_ffn_workspace_bytes(&up, tokens, choices));
  std::vector<float> first;
  for (drl_isa isa : isas) {
    for (drl_parallel_for run : {drl_parallel_for{nullptr}, drl_parallel_for{on_two_threads}}) {
      std::vector<float> y(tokens * up.depth);
      drl_routed_ffn call{};
      call.up = view(up_packed);
      if (gated) call.gate = view(gate_packed);
      call.down = view(down_packed);
      call.up_bias = call.gate_bias = bias.data();
      call.down_bias = bias.data() + up.matrices * up.columns;
      call.activation = DRL_ACTIVATION_GELU;
      call.x = x.data();
      call.expert_ids = ids.data();
      call.gates = gates.data();
      call.tokens = tokens;
      call.choices = choices;
      call.y = y.data();
      const drl_execution execution{isa, run, nullptr};
      const drl_workspace workspace{memory.data(), memory.size()};
      require(drl_routed_ffn_int8(&call, workspace, &execution) == DRL_OK, "routed layer");
      if (first.empty()) first = y;
      require(same(y, first), "routed layer: the same bits everywhere");
    }
  }
}

void check_refusals() {
  const drl_packed_shape shape{1, 40, 9};
  std::vector<unsigned char> packed = pack(draw(360), shape);
  std::vector<float> x = draw(18), y(80);
  const drl_linear call{view(packed), nullptr, DRL_ACTIVATION_NONE, x.data(), 2, y.data()};
  const drl_execution execution{DRL_ISA_SCALAR, nullptr, nullptr};
  std::vector<unsigned char> memory(drl_linear_workspace_bytes(&shape, 2) - 1);
  require(drl_linear_int8(&call, {memory.data(), memory.size()}, &execution) ==
              DRL_WORKSPACE_TOO_SMALL,
          "a workspace that is too small");
  for (size_t length = 0; length < packed.size(); ++length) {
    const std::vector<unsigned char> cut(packed.begin(), packed.begin() + length);
    require(drl_read_packed_shape(view(cut), nullptr) == DRL_NOT_PACKED, "cut weights");
  }
  for (int round = 0; round < 20000; ++round) {
    std::vector<unsigned char> damaged = packed;
    damaged[below(128)] ^= static_cast<unsigned char>(1 + below(255));
    require(drl_read_packed_shape(view(damaged), nullptr) != DRL_OK, "a damaged header");
  }
  require(drl_linear_int8(nullptr, {}, &execution) == DRL_BAD_ARGUMENT, "null");
}

}  // namespace

int main() {
  const std::vector<drl_isa> isas = available();
  for (size_t rows = 0; rows < 30; ++rows) check_linear({1, 37, 70}, rows, isas);
  for (int round = 0; round < 150; ++round) {
    check_linear({1, 1 + below(140), 1 + below(300)}, below(30), isas);
    const size_t columns = 1 + below(140);
    check_top_k({1, columns, 1 + below(90)}, below(20), 1 + below(columns), isas);
    check_routed({1 + below(9), 1 + below(90), 1 + below(70)}, below(40), below(4),
                 below(2) == 0, isas);
  }
  // Large enough that the work is shared out.
  check_linear({1, 1500, 300}, 1, isas);
  check_linear({1, 1500, 300}, 30, isas);
  check_linear({1, 70, 300}, 300, isas);
  check_top_k({1, 3000, 300}, 20, 50, isas);
  check_routed({5, 600, 260}, 1, 2, true, isas);
  check_routed({5, 600, 260}, 130, 2, true, isas);
  check_refusals();
  std::puts("all checks hold");
}
