// The C interface of DRL's CPU kernels: what ctypes, ONNX Runtime's shim and other programs call.
//
// Every function that can fail returns a drl_status; nothing throws, allocates or keeps state.
// Matrices are row-major, all floats are float32. Numbers are aligned to their own size. What a
// function writes overlaps nothing that it reads, but for the caches of attention.
#ifndef DRL_NATIVE_H
#define DRL_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define DRL_EXPORT __declspec(dllexport)
#else
#define DRL_EXPORT __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

// Raised whenever a function or a struct of this file changes its meaning.
#define DRL_NATIVE_ABI_VERSION 7
// The layout of packed weights that these kernels read.
#define DRL_PACKED_LAYOUT 2

typedef enum drl_status {
  DRL_OK = 0,
  DRL_BAD_ARGUMENT = 1,         // a size or enum that is not possible, or a null or odd pointer
  DRL_UNKNOWN_ISA = 2,          // no such instruction set
  DRL_ISA_UNAVAILABLE = 3,      // an instruction set that this processor lacks
  DRL_WORKSPACE_TOO_SMALL = 4,  //
  DRL_SHAPES_DIFFER = 5,        // shapes or formats of weights that do not fit the call
  DRL_NO_SUCH_EXPERT = 6,       // an expert id outside [-1, E)
  DRL_CACHE_FULL = 7,           // more tokens than the cache has slots
  DRL_NO_SUCH_ROW = 8           // a row's id outside [0, columns)
} drl_status;

typedef enum drl_isa { DRL_ISA_SCALAR = 0, DRL_ISA_AVX2 = 1, DRL_ISA_AVX512VNNI = 2 } drl_isa;

typedef enum drl_activation {
  DRL_ACTIVATION_NONE = 0,
  DRL_ACTIVATION_RELU = 1,
  DRL_ACTIVATION_GELU = 2,       // x·Φ(x)
  DRL_ACTIVATION_GELU_TANH = 3,  // its tanh approximation
  DRL_ACTIVATION_SILU = 4
} drl_activation;

// Calls task(state, i) once for each i < count, on any threads, and returns when all are done.
typedef void (*drl_task)(void* state, size_t index);
typedef void (*drl_parallel_for)(void* context, size_t count, drl_task task, void* state);

// How a kernel runs. Results do not depend on it, to the last bit, where packed weights are in
// their ranges: q in [-127, 127] in 8 bits, [-7, 7] in int4.
typedef struct drl_execution {
  drl_isa isa;
  drl_parallel_for parallel_for;  // null: one after the other, on the calling thread
  void* context;                  // handed to parallel_for
} drl_execution;

// Memory that a caller lends for the length of one call. Any alignment.
typedef struct drl_workspace {
  void* data;
  size_t bytes;
} drl_workspace;

DRL_EXPORT uint32_t drl_abi_version(void);
DRL_EXPORT const char* drl_status_message(drl_status status);

// The instruction set named `name` ("avx512vnni", "avx2", "scalar"), if this processor has it.
DRL_EXPORT drl_status drl_isa_by_name(const char* name, drl_isa* isa);
// The best one here, or the one that the environment variable DRL_NATIVE_ISA names.
DRL_EXPORT drl_status drl_default_isa(drl_isa* isa);

typedef enum drl_format {
  DRL_FORMAT_INT8 = 0,        // one scale per column
  DRL_FORMAT_INT4 = 1,        // and a multiplier of it for each 32 of the depth
  DRL_FORMAT_INT8_BLOCK = 2,  // likewise
} drl_format;

// Packed weights: `matrices` matrices of [columns, depth], each as in y = x · Wᵀ; see
// packed_weights.h for the layout. Values and multipliers may lie at any address, as in a mapped
// file; scales are aligned as all floats are.
typedef struct drl_weights {
  drl_format format;
  uint64_t matrices;
  uint64_t columns;
  uint64_t depth;
  const uint8_t* values;
  const uint8_t* multipliers;  // null in int8
  const float* scales;
} drl_weights;

// Bytes of the values, multipliers and scales of weights of this shape; 0 where there can be none.
DRL_EXPORT size_t drl_values_bytes(drl_format format, uint64_t matrices, uint64_t columns,
                                   uint64_t depth);
DRL_EXPORT size_t drl_multipliers_bytes(drl_format format, uint64_t matrices, uint64_t columns,
                                        uint64_t depth);
DRL_EXPORT size_t drl_scales_bytes(drl_format format, uint64_t matrices, uint64_t columns,
                                   uint64_t depth);

// Rows x̂ that a product reads: x · norm / sqrt(mean(x²) + epsilon), or x where norm is null.
typedef struct drl_rows {
  const float* x;     // [count, depth]
  size_t count;
  const float* norm;  // [depth], or null
  float epsilon;
} drl_rows;

// Columns of a product.
typedef struct drl_output {
  float* y;        // [rows, columns]
  size_t columns;  // 0: no such output
} drl_output;

// y = residual + activation(x̂ · Wᵀ + bias), for the columns of one matrix; or, with two matrices,
// residual + activation(x̂ · W₀ᵀ + bias₀) ⊙ (x̂ · W₁ᵀ + bias₁).
//
// A row of x with NaN or infinity gives a row of NaN and touches no other. The columns may be split
// over up to three outputs: q, k and v of an attention layer.
typedef struct drl_linear {
  drl_weights weights;  // of one or two matrices
  drl_rows rows;
  const float* bias;      // [matrices, columns], or null
  const float* residual;  // [rows, columns], or null; it needs a single output
  drl_activation activation;
  drl_output outputs[3];
} drl_linear;

DRL_EXPORT size_t drl_linear_workspace_bytes(const drl_linear* linear);
DRL_EXPORT drl_status drl_linear_run(const drl_linear* linear, drl_workspace workspace,
                                     const drl_execution* execution);

// The same with float weights, in panels of DRL_FLOAT_PANEL columns: [matrices, panels, depth, 64],
// where what is beyond the last column of a matrix is 0. NaN and infinity in a row go where
// arithmetic takes them.
#define DRL_FLOAT_PANEL 64

typedef struct drl_float_linear {
  size_t matrices;  // 1 or 2
  size_t columns;
  size_t depth;
  const float* weights;
  drl_rows rows;
  const float* bias;      // [matrices, columns], or null
  const float* residual;  // [rows, columns], or null; it needs a single output
  drl_activation activation;
  drl_output outputs[3];
} drl_float_linear;

DRL_EXPORT size_t drl_float_linear_workspace_bytes(const drl_float_linear* linear);
DRL_EXPORT drl_status drl_float_linear_run(const drl_float_linear* linear, drl_workspace workspace,
                                           const drl_execution* execution);

// A language model's head: logits = (x̂ · Wᵀ)·factor + bias, and of every row the k largest and the
// logarithm of the sum of their exponentials.
typedef struct drl_head {
  drl_weights weights;  // of one matrix
  drl_rows rows;
  const float* bias;   // [columns], or null
  float factor;
  float* logits;       // [rows, columns], or null: they are not written out
  size_t k;            // at most the columns; 0 for none. Meant to be small: lists of k are kept
                       // sorted by insertion
  float* values;       // [rows, k], the largest first, equal ones by column, NaN last
  int32_t* ids;        // [rows, k]
  float* normalisers;  // [rows]; their last step is the log of the C library
} drl_head;

DRL_EXPORT size_t drl_head_workspace_bytes(const drl_head* head);
DRL_EXPORT drl_status drl_head_run(const drl_head* head, drl_workspace workspace,
                                   const drl_execution* execution);

// The same with float weights as a model stores them: logits = (x · Wᵀ)·factor + bias. NaN and
// infinity in a row go where arithmetic takes them.
typedef struct drl_float_head {
  size_t rows, depth, columns;
  const float* x;       // [rows, depth]
  const float* weight;  // [columns, depth]
  const float* bias;    // [columns], or null
  float factor;
  float* logits;       // [rows, columns], or null: they are not written out
  size_t k;            // as in drl_head
  float* values;       // [rows, k]
  int32_t* ids;        // [rows, k]
  float* normalisers;  // [rows]
} drl_float_head;

DRL_EXPORT size_t drl_float_head_workspace_bytes(const drl_float_head* head);
DRL_EXPORT drl_status drl_float_head_run(const drl_float_head* head, drl_workspace workspace,
                                         const drl_execution* execution);

// The feed-forward layer of experts: the operator drl.RoutedFFN with packed weights.
//
// y[t] = residual[t] + Σ_j gates[t,j] · down[e](act(up[e](x[t]))) with e = expert_ids[t,j], or with
// act(gate[e](x[t])) ⊙ up[e](x[t]) where there is a gate. Experts are added up in ascending order.
// An id of -1 contributes nothing. Only the experts that are chosen are read.
typedef struct drl_routed_ffn {
  drl_weights up;    // E matrices of [f, d]
  drl_weights gate;  // the same, or null values
  drl_weights down;  // E matrices of [d, f]
  const float* up_bias;    // [E, f], or null
  const float* gate_bias;  // [E, f], or null
  const float* down_bias;  // [E, d], or null
  drl_activation activation;
  const float* x;             // [tokens, d]
  const int32_t* expert_ids;  // [tokens, choices]
  const float* gates;         // [tokens, choices]
  size_t tokens;
  size_t choices;
  const float* residual;  // [tokens, d], or null
  float* y;               // [tokens, d]
} drl_routed_ffn;

DRL_EXPORT size_t drl_routed_ffn_workspace_bytes(const drl_routed_ffn* layer);
DRL_EXPORT drl_status drl_routed_ffn_run(const drl_routed_ffn* layer, drl_workspace workspace,
                                         const drl_execution* execution);

// The operator drl.RoutedFFN itself, with float matrices as a model stores them. NaN and infinity in
// a token go where arithmetic takes them.
typedef struct drl_float_routed_ffn {
  size_t tokens, choices, experts, width, inner;  // T, k, E, d, f
  const float* x;             // [T, d]
  const int32_t* expert_ids;  // [T, k]
  const float* gates;         // [T, k]
  const float* up;            // [E, d, f]
  const float* gate;          // [E, d, f], or null
  const float* down;          // [E, f, d]
  const float* up_bias;       // [E, f], or null
  const float* gate_bias;     // [E, f], or null
  const float* down_bias;     // [E, d], or null
  drl_activation activation;
  float* y;  // [T, d]
} drl_float_routed_ffn;

DRL_EXPORT size_t drl_float_routed_ffn_workspace_bytes(const drl_float_routed_ffn* layer);
DRL_EXPORT drl_status drl_float_routed_ffn_run(const drl_float_routed_ffn* layer,
                                               drl_workspace workspace,
                                               const drl_execution* execution);

// Rows of weights of 8 bits as floats: y[i] is row ids[i] of the one matrix. An id outside
// [0, columns) is DRL_NO_SUCH_ROW, and int4 weights are DRL_SHAPES_DIFFER.
DRL_EXPORT drl_status drl_gather_rows(const drl_weights* weights, const int64_t* ids, size_t count,
                                      float* y, const drl_execution* execution);

// The operator drl.CachedAttention: new keys and values go to slots lengths[b] + t, in place, then
// new token t of row b attends to slots 0 … lengths[b] + t.
typedef struct drl_cached_attention {
  size_t rows, tokens, heads, kv_heads, width, capacity;  // B, T, H, N, h, C
  float scale;
  const float* q;          // [B, T, H·h]
  const float* k;          // [B, T, N·h]
  const float* v;          // [B, T, N·h]
  float* keys;             // [B, N, C, h]
  float* values;           // [B, N, C, h]
  const int32_t* lengths;  // [B], tokens of a row in the cache before
  const float* bias;       // [bias_rows, H, T, slots], or null
  size_t bias_rows;        // 1 or B
  size_t slots;            // max(lengths) + T
  float* y;                // [B, T, H·h]
} drl_cached_attention;

DRL_EXPORT size_t drl_cached_attention_workspace_bytes(const drl_cached_attention* attention);
DRL_EXPORT drl_status drl_cached_attention_run(const drl_cached_attention* attention,
                                               drl_workspace workspace,
                                               const drl_execution* execution);

// The operator drl.CrossAttention: row b attends to the K states of source b / (B / R). States at
// the end of a source whose bias is -1e4 or lower count as absent, unless all are.
typedef struct drl_cross_attention {
  size_t rows, sources, tokens, heads, kv_heads, width, states;  // B, R, T, H, N, h, K
  float scale;
  const float* q;       // [B, T, H·h]
  const float* keys;    // [R, N, K, h]
  const float* values;  // [R, N, K, h]
  const float* bias;    // [R, K]
  float* y;             // [B, T, H·h]
} drl_cross_attention;

DRL_EXPORT size_t drl_cross_attention_workspace_bytes(const drl_cross_attention* attention);
DRL_EXPORT drl_status drl_cross_attention_run(const drl_cross_attention* attention,
                                              drl_workspace workspace,
                                              const drl_execution* execution);

// The operator drl.EncoderAttention: the tokens of a row attend to each other, up to the row's length
// in [0, S]; y is 0 behind it. The score of query i and key j has bias[j − i + (D − 1) / 2] of its
// head added, or the first or last where there is none.
typedef struct drl_encoder_attention {
  size_t rows, tokens, heads, kv_heads, width;  // B, S, H, N, h
  float scale;
  const float* q;          // [B, S, H·h]
  const float* k;          // [B, S, N·h]
  const float* v;          // [B, S, N·h]
  const int32_t* lengths;  // [B]
  const float* bias;       // [distances, H], or null
  size_t distances;        // D, odd
  float* y;                // [B, S, H·h]
} drl_encoder_attention;

DRL_EXPORT size_t drl_encoder_attention_workspace_bytes(const drl_encoder_attention* attention);
DRL_EXPORT drl_status drl_encoder_attention_run(const drl_encoder_attention* attention,
                                                drl_workspace workspace,
                                                const drl_execution* execution);

// Keys and values of int8: a row has the numbers of a head at one position and, in two more bytes,
// their scale. See state_rows.h.
#define DRL_SCALE_BYTES 2

// The operator drl.QuantizedCachedAttention: drl_cached_attention over a cache of int8. New keys and
// values are rounded when they are written.
typedef struct drl_quantized_cached_attention {
  size_t rows, tokens, heads, kv_heads, width, capacity;  // B, T, H, N, h, C
  float scale;
  const float* q;          // [B, T, H·h]
  const float* k;          // [B, T, N·h]
  const float* v;          // [B, T, N·h]
  int8_t* keys;            // [B, N, C, h + 2]
  int8_t* values;          // [B, N, C, h + 2]
  const int32_t* lengths;  // [B], tokens of a row in the cache before
  const float* bias;       // [bias_rows, H, T, slots], or null
  size_t bias_rows;        // 1 or B
  size_t slots;            // max(lengths) + T
  float* y;                // [B, T, H·h]
} drl_quantized_cached_attention;

DRL_EXPORT size_t drl_quantized_cached_attention_workspace_bytes(
    const drl_quantized_cached_attention* attention);
DRL_EXPORT drl_status drl_quantized_cached_attention_run(
    const drl_quantized_cached_attention* attention, drl_workspace workspace,
    const drl_execution* execution);

// The operator drl.QuantizedCrossAttention: drl_cross_attention to states of int8.
typedef struct drl_quantized_cross_attention {
  size_t rows, sources, tokens, heads, kv_heads, width, states;  // B, R, T, H, N, h, K
  float scale;
  const float* q;        // [B, T, H·h]
  const int8_t* keys;    // [R, N, K, h + 2]
  const int8_t* values;  // [R, N, K, h + 2]
  const float* bias;     // [R, K]
  float* y;              // [B, T, H·h]
} drl_quantized_cross_attention;

DRL_EXPORT size_t drl_quantized_cross_attention_workspace_bytes(
    const drl_quantized_cross_attention* attention);
DRL_EXPORT drl_status drl_quantized_cross_attention_run(
    const drl_quantized_cross_attention* attention, drl_workspace workspace,
    const drl_execution* execution);

// The operator drl.QuantizeStates: keys or values as rows of int8, head by head. It needs no memory.
typedef struct drl_quantize_states {
  size_t rows, states, kv_heads, width;  // B, K, N, h
  const float* x;                        // [B, K, N·h]
  int8_t* y;                             // [B, N, K, h + 2]
} drl_quantize_states;

DRL_EXPORT size_t drl_quantize_states_workspace_bytes(const drl_quantize_states* states);
DRL_EXPORT drl_status drl_quantize_states_run(const drl_quantize_states* states,
                                              drl_workspace workspace,
                                              const drl_execution* execution);

// The operator drl.ExpertRoute: scores = x · W + bias + prior_scale · group_log_probs[group of e],
// -1e4 where the group is not allowed; softmax over the experts; the k most probable, ties to the
// lowest. Padding gets ids -1 and gates 0.
typedef struct drl_expert_route {
  size_t tokens, depth, experts, groups, k;
  const float* x;                // [tokens, depth]
  const float* weight;           // [depth, experts]
  const float* bias;             // [experts], or null
  float prior_scale;
  const float* group_log_probs;  // [tokens, groups]
  const uint8_t* allowed;        // [tokens, groups], 0 or 1
  const uint8_t* token_mask;     // [tokens], 0 or 1
  int32_t* expert_ids;           // [tokens, k]
  float* gates;                  // [tokens, k]
} drl_expert_route;

DRL_EXPORT size_t drl_expert_route_workspace_bytes(const drl_expert_route* route);
DRL_EXPORT drl_status drl_expert_route_run(const drl_expert_route* route, drl_workspace workspace,
                                           const drl_execution* execution);

#ifdef __cplusplus
}
#endif

#endif
