// Attention of all tokens of a source to each other. Queries are many, so that its products are those
// of matrices, and its time is their arithmetic.
#include <cstring>

#include "attention_kernels.h"
#include "float_weights.h"
#include "parallel_for.h"
#include "row_blocks.h"
#include "task_size.h"
#include "workspace.h"

namespace drl {
namespace {

// Queries of a head that pass over its keys and values together, at most, and the scores that they
// may have: they stay in the second cache, next to the keys or values.
constexpr size_t kMostQueries = 96;
constexpr size_t kMostScores = 64 * 1024;
// Keys that are turned together: what is read and what is written then comes in pieces.
constexpr size_t kTurned = 4;

size_t queries_per_block(size_t scores_per_query) {
  const size_t fitting = kMostScores / scores_per_query;
  return fitting > kMostQueries ? kMostQueries : fitting < 1 ? 1 : fitting;
}

// What attention needs memory for.
struct EncoderArrays {
  size_t panels;   // of the longest row's keys
  size_t stride;   // of a row of scores
  size_t queries;  // of a block, at most
  size_t blocks;   // of a head's queries, at most
  size_t units_per_task;
  float* biases;  // [H, 2 · S − 1] by distance, or null
  float* keys;    // [B, N, panels, h, kFloatPanelColumns], turned and scaled
  float* values;  // [B, N, S, h]
  float* scores;  // [tasks, queries, stride]

  EncoderArrays(Carver& carver, const drl_encoder_attention& call) {
    const size_t key_heads = call.rows * call.kv_heads;
    panels = ceil_div(call.tokens, kFloatPanelColumns);
    // Longer by a vector so that rows do not compete for one place in the cache.
    stride = panels * kFloatPanelColumns + kFloatLanes;
    blocks = ceil_div(call.tokens, queries_per_block(stride));
    queries = ceil_div(call.tokens, blocks);
    units_per_task = panels_per_task(units(call), head_bytes(call), queries);
    biases = call.bias == nullptr ? nullptr : carver.take<float>(call.heads * distances(call));
    keys = carver.take<float>(key_heads * key_floats(call));
    values = carver.take<float>(key_heads * call.tokens * call.width);
    scores = carver.take<float>(ceil_div(units(call), units_per_task) * queries * stride);
  }

  // Blocks of queries, of all heads of all rows.
  size_t units(const drl_encoder_attention& call) const {
    return call.rows * call.heads * blocks;
  }
  // Of a head's keys.
  size_t key_floats(const drl_encoder_attention& call) const {
    return panels * kFloatPanelColumns * call.width;
  }
  static size_t distances(const drl_encoder_attention& call) { return 2 * call.tokens - 1; }
  static size_t head_bytes(const drl_encoder_attention& call) {
    return 2 * call.tokens * call.width * sizeof(float);
  }
};

struct EncoderAttention {
  const drl_encoder_attention& call;
  const AttentionKernels& kernels;
  EncoderArrays arrays;

  void run(const drl_execution& execution) const {
    if (call.bias != nullptr) lay_out_biases();
    const size_t key_heads = call.rows * call.kv_heads;
    const size_t together = panels_per_task(key_heads, EncoderArrays::head_bytes(call), 0);
    parallel_for(execution, ceil_div(key_heads, together), [&](size_t task) {
      const size_t last = smaller((task + 1) * together, key_heads);
      for (size_t head = task * together; head < last; ++head) lay_out(head);
    });
    const size_t units = arrays.units(call), share = arrays.units_per_task;
    parallel_for(execution, ceil_div(units, share), [&](size_t task) {
      float* scores = arrays.scores + task * arrays.queries * arrays.stride;
      const size_t last = smaller((task + 1) * share, units);
      for (size_t unit = task * share; unit < last; ++unit) {
        // The blocks of a head come together, and read the same keys. Then comes the next row, so
        // that a long one among short ones is work for several tasks.
        const size_t head = unit / arrays.blocks;
        attend(head % call.rows, head / call.rows, unit % arrays.blocks, scores);
      }
    });
  }

 private:
  size_t length_of(size_t row) const { return static_cast<size_t>(call.lengths[row]); }

  // The biases of a head by distance, from that of the last query and the first key on: those of a
  // query then lie side by side, in the order of the keys.
  void lay_out_biases() const {
    const size_t distances = EncoderArrays::distances(call), middle = call.distances / 2;
    for (size_t i = 0; i < distances; ++i) {
      const size_t before = call.tokens - 1;  // places of the distances below 0
      size_t place = middle + i < before ? 0 : middle + i - before;
      place = smaller(place, call.distances - 1);
      for (size_t head = 0; head < call.heads; ++head) {
        arrays.biases[head * distances + i] = call.bias[place * call.heads + head];
      }
    }
  }

  // The keys and values of a head: keys in panels as matrices have them, values one after the other.
  void lay_out(size_t head) const {
    const size_t row = head / call.kv_heads, stride = call.kv_heads * call.width;
    const size_t first = row * call.tokens * stride + head % call.kv_heads * call.width;
    const size_t length = length_of(row);
    float* keys = arrays.keys + head * arrays.key_floats(call);
    float* values = arrays.values + head * call.tokens * call.width;
    const size_t filled = length / kFloatPanelColumns * kFloatPanelColumns;
    if (filled < length) {
      std::memset(keys + filled * call.width, 0, kFloatPanelColumns * call.width * sizeof(float));
    }
    for (size_t token = 0; token < length; token += kTurned) {
      const size_t column = token % kFloatPanelColumns;
      float* panel = keys + (token - column) * call.width + column;
      const float* rows[kTurned];
      // The last ones repeat a key rather than read beyond; nobody reads those scores.
      for (size_t i = 0; i < kTurned; ++i) {
        rows[i] = call.k + first + smaller(token + i, length - 1) * stride;
      }
      for (size_t place = 0; place < call.width; ++place) {
        float turned[kTurned];
        for (size_t i = 0; i < kTurned; ++i) turned[i] = rows[i][place] * call.scale;
        std::memcpy(panel + place * kFloatPanelColumns, turned, sizeof turned);
      }
    }
    for (size_t token = 0; token < length; ++token) {
      std::memcpy(values + token * call.width, call.v + first + token * stride,
                  call.width * sizeof(float));
    }
  }

  // A block of the queries of a head.
  void attend(size_t row, size_t head, size_t index, float* scores) const {
    const size_t length = length_of(row), stride = call.heads * call.width;
    const size_t first = row * call.tokens * stride + head * call.width;
    if (index == 0) {
      for (size_t token = length; token < call.tokens; ++token) {
        std::memset(call.y + first + token * stride, 0, call.width * sizeof(float));
      }
    }
    if (index >= ceil_div(length, arrays.queries)) return;
    const RowBlock block = block_of(length, arrays.queries, index);
    const size_t place = first + block.first * stride;
    const size_t key_head = row * call.kv_heads + head / (call.heads / call.kv_heads);
    score(key_head, length, {call.q + place, stride, block.rows}, scores);
    float sums[kMostQueries];
    for (size_t i = 0; i < block.rows; ++i) {
      const float* bias = bias_of(head, block.first + i);
      sums[i] = kernels.exponentials(scores + i * arrays.stride, bias, length);
    }
    const float* values = arrays.values + key_head * call.tokens * call.width;
    kernels.multiply({values, call.width, length, call.width, nullptr},
                     {scores, arrays.stride, block.rows}, call.y + place, stride);
    for (size_t i = 0; i < block.rows; ++i) {
      float* y = call.y + place + i * stride;
      const float factor = 1.0f / sums[i];
      for (size_t j = 0; j < call.width; ++j) y[j] *= factor;
    }
  }

  void score(size_t key_head, size_t length, const FloatRows& queries, float* scores) const {
    const float* keys = arrays.keys + key_head * arrays.key_floats(call);
    for (size_t start = 0; start < length; start += kFloatPanelColumns) {
      const float* panel = keys + start * call.width;
      const bool last = start + kFloatPanelColumns >= length;
      const float* next = last ? nullptr : panel + kFloatPanelColumns * call.width;
      kernels.multiply({panel, kFloatPanelColumns, call.width, kFloatPanelColumns, next}, queries,
                       scores + start, arrays.stride);
    }
  }

  const float* bias_of(size_t head, size_t query) const {
    if (call.bias == nullptr) return nullptr;
    return arrays.biases + head * EncoderArrays::distances(call) + call.tokens - 1 - query;
  }
};

bool possible(const drl_encoder_attention& call) {
  return call.kv_heads != 0 && call.heads != 0 && call.heads % call.kv_heads == 0 &&
         call.width != 0 && (call.bias == nullptr || call.distances % 2 == 1);
}

bool empty(const drl_encoder_attention& call) { return call.rows == 0 || call.tokens == 0; }

drl_status check(const drl_encoder_attention& call) {
  if (!possible(call) || call.q == nullptr || call.k == nullptr || call.v == nullptr ||
      call.lengths == nullptr || call.y == nullptr) {
    return DRL_BAD_ARGUMENT;
  }
  for (size_t row = 0; row < call.rows; ++row) {
    if (call.lengths[row] < 0 || static_cast<size_t>(call.lengths[row]) > call.tokens) {
      return DRL_BAD_ARGUMENT;
    }
  }
  return DRL_OK;
}

drl_status run(const drl_encoder_attention& call, drl_workspace workspace,
               const drl_execution& execution) {
  const AttentionKernels* kernels = attention_kernels_for(execution.isa);
  if (kernels == nullptr) return DRL_ISA_UNAVAILABLE;
  if (empty(call)) return DRL_OK;
  const drl_status status = check(call);
  if (status != DRL_OK) return status;
  if (workspace.data == nullptr ||
      workspace.bytes < drl_encoder_attention_workspace_bytes(&call)) {
    return DRL_WORKSPACE_TOO_SMALL;
  }
  Carver carver(workspace);
  EncoderAttention{call, *kernels, EncoderArrays(carver, call)}.run(execution);
  return DRL_OK;
}

}  // namespace
}  // namespace drl

extern "C" size_t drl_encoder_attention_workspace_bytes(const drl_encoder_attention* attention) {
  drl::Carver carver;
  if (!drl::empty(*attention) && drl::possible(*attention)) {
    drl::EncoderArrays(carver, *attention);
  }
  return carver.bytes();
}

extern "C" drl_status drl_encoder_attention_run(const drl_encoder_attention* attention,
                                                drl_workspace workspace,
                                                const drl_execution* execution) {
  if (attention == nullptr || execution == nullptr) return DRL_BAD_ARGUMENT;
  return drl::run(*attention, workspace, *execution);
}
