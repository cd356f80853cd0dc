// The C interface of DRL's CPU kernels: what ctypes, ONNX Runtime's shim and other programs call.
//
// Every function that can fail returns a drl_status; nothing throws, allocates or keeps state.
// Matrices are row-major. Weights are int8, symmetric, with one scale per output channel.
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
#define DRL_NATIVE_ABI_VERSION 1

typedef enum drl_status {
  DRL_OK = 0,
  DRL_BAD_ARGUMENT = 1,         // a size that is not possible, or a null or odd pointer
  DRL_NOT_FINITE = 2,           // weights or scales with NaN or infinity
  DRL_NOT_PACKED = 3,           // not packed weights, cut short, or damaged in the header
  DRL_NEWER_LAYOUT = 4,         // packed by a newer version
  DRL_UNKNOWN_ISA = 5,          // no such instruction set
  DRL_ISA_UNAVAILABLE = 6,      // an instruction set that this processor lacks
  DRL_WORKSPACE_TOO_SMALL = 7,  //
  DRL_SHAPES_DIFFER = 8,        // packed weights that do not fit each other
  DRL_NO_SUCH_EXPERT = 9        // an expert id outside [-1, E)
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

// How a kernel runs. Results do not depend on it, to the last bit.
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

// Packed weights: see packed_weights.h. At a multiple of 4 bytes; a mapped file serves.
typedef struct drl_packed {
  const void* data;
  size_t bytes;
} drl_packed;

// `matrices` matrices of [columns, depth], each as in y = x · Wᵀ.
typedef struct drl_packed_shape {
  uint64_t matrices;
  uint64_t columns;
  uint64_t depth;
} drl_packed_shape;

DRL_EXPORT uint32_t drl_abi_version(void);
DRL_EXPORT const char* drl_status_message(drl_status status);

// The instruction set named `name` ("avx512vnni", "avx2", "scalar"), if this processor has it.
DRL_EXPORT drl_status drl_isa_by_name(const char* name, drl_isa* isa);
// The best one here, or the one that the environment variable DRL_NATIVE_ISA names.
DRL_EXPORT drl_status drl_default_isa(drl_isa* isa);

// Bytes of packed weights of a shape, or 0 where it cannot be packed.
DRL_EXPORT size_t drl_packed_bytes(const drl_packed_shape* shape);
// Quantises weights [matrices, columns, depth] and packs them into `packed`.
DRL_EXPORT drl_status drl_pack(const float* weights, const drl_packed_shape* shape, void* packed,
                               size_t bytes);
// Packs weights that are quantised already, with scales [matrices, columns].
DRL_EXPORT drl_status drl_pack_int8(const int8_t* weights, const float* scales,
                                    const drl_packed_shape* shape, void* packed, size_t bytes);
DRL_EXPORT drl_status drl_read_packed_shape(drl_packed packed, drl_packed_shape* shape);
DRL_EXPORT drl_status drl_unpack_int8(drl_packed packed, int8_t* weights, float* scales);

// y[rows, columns] = activation(x[rows, depth] · Wᵀ + bias[columns]), x quantised row by row.
//
// A row of x with NaN or infinity gives a row of NaN and touches no other. `bias` may be null.
typedef struct drl_linear {
  drl_packed weight;  // of one matrix
  const float* bias;
  drl_activation activation;
  const float* x;
  size_t rows;
  float* y;
} drl_linear;

DRL_EXPORT size_t drl_linear_workspace_bytes(const drl_packed_shape* shape, size_t rows);
DRL_EXPORT drl_status drl_linear_int8(const drl_linear* linear, drl_workspace workspace,
                                      const drl_execution* execution);

// The k largest values of every row of x · Wᵀ + bias, as drl_linear computes them, and their
// columns; the largest first, equal ones by column. NaN is below every number.
typedef struct drl_top_k {
  drl_packed weight;  // of one matrix
  const float* bias;  // or null
  const float* x;
  size_t rows;
  size_t k;       // at most the columns
  float* values;  // [rows, k]
  int32_t* ids;   // [rows, k]
} drl_top_k;

DRL_EXPORT size_t drl_top_k_workspace_bytes(const drl_packed_shape* shape, size_t rows, size_t k);
DRL_EXPORT drl_status drl_top_k_int8(const drl_top_k* head, drl_workspace workspace,
                                     const drl_execution* execution);

// The feed-forward layer of experts: the operator drl.RoutedFFN with int8 weights.
//
// y[t] = Σ_j gates[t,j] · down[e](act(up[e](x[t]))) with e = expert_ids[t,j], or with
// act(gate[e](x[t])) ⊙ up[e](x[t]) where there is a gate. An id of -1 contributes nothing. Only
// the experts that are chosen are read. Biases [E, f], [E, f] and [E, d] may be null.
typedef struct drl_routed_ffn {
  drl_packed up;    // E matrices of [f, d]
  drl_packed gate;  // the same, or null data
  drl_packed down;  // E matrices of [d, f]
  const float* up_bias;
  const float* gate_bias;
  const float* down_bias;
  drl_activation activation;
  const float* x;             // [tokens, d]
  const int32_t* expert_ids;  // [tokens, choices]
  const float* gates;         // [tokens, choices]
  size_t tokens;
  size_t choices;
  float* y;  // [tokens, d]
} drl_routed_ffn;

DRL_EXPORT size_t drl_routed_ffn_workspace_bytes(const drl_packed_shape* up, size_t tokens,
                                                 size_t choices);
DRL_EXPORT drl_status drl_routed_ffn_int8(const drl_routed_ffn* layer, drl_workspace workspace,
                                          const drl_execution* execution);

#ifdef __cplusplus
}
#endif

#endif
