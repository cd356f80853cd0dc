// What an instruction set brings for attention, routing and a head of floats: float loops, behind
// one table.
//
// Sums have a fixed order, and so has the rounding of products before they are added, so all tables
// compute the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "drl_native.h"
#include "kernels.h"

namespace drl {

// Floats of a vector in the loops, and partial sums, whatever a processor's registers hold.
constexpr size_t kFloatLanes = 16;

// One query of a key head, for one token and one head.
struct AttentionQuery {
  const float* q;     // [width]
  const float* bias;  // [slots], or null
  float* y;           // [width]
  size_t slots;       // it attends to the first so many, at least one
};

// Bytes behind the values of an int8 key or value: its scale (see state_rows.h).
constexpr size_t kScaleBytes = DRL_SCALE_BYTES;

// Elements of a key or value of `width` numbers.
template <class Element>
constexpr size_t row_width(size_t width) {
  return sizeof(Element) == 1 ? width + kScaleBytes : width;
}

// The keys and values of one head: float, or int8 with a scale each.
template <class Element>
struct AttentionHead {
  const Element* keys;    // [slots, row_width]
  const Element* values;  // [slots, row_width]
  const Element* next;    // keys that the next call reads; a hint, but not null
  size_t width;
  float scale;
};

// Consecutive columns of a head, in the order in which they are read.
struct HeadColumns {
  const float* weight;  // [count, depth]
  const float* bias;    // [count], or null
  float factor;
  size_t depth;
  size_t count;
};

// Consecutive columns of a matrix whose rows lie `stride` apart.
struct MatrixColumns {
  const float* weight;  // [depth, stride]
  size_t stride;
  size_t depth;
  size_t count;
  const float* next;  // columns that the next call reads; a hint, or null
};

// Rows of floats that lie `stride` apart.
struct FloatRows {
  const float* x;
  size_t stride;
  size_t count;
};

// The most rows of a head that pass over its columns together.
constexpr size_t kMostHeadRows = 8;

struct AttentionKernels {
  // y = softmax(q · keysᵀ · scale + bias) · values for each query. They share every key and value
  // that is read, and come in the order of their slots, the fewest first.
  //
  // `scores` is memory of [count, stride], the stride a multiple of kFloatLanes.
  void (*attend)(const AttentionHead<float>& head, const AttentionQuery* queries, size_t count,
                 float* scores, size_t stride);
  // The same, where q · key is multiplied with the scale of the key first, and the weight of a
  // value with the scale of the value.
  void (*attend_int8)(const AttentionHead<int8_t>& head, const AttentionQuery* queries,
                      size_t count, float* scores, size_t stride);

  // x[width] as a key or value of int8.
  void (*quantize_state)(const float* x, size_t width, int8_t* row);

  // y[rows, stride] = x[rows, depth] · weight[depth, columns]; the rest of y's rows is left alone.
  void (*project)(const float* x, size_t rows, size_t depth, const float* weight, size_t columns,
                  float* y, size_t stride);

  // y[rows, stride] = (x[rows, depth] · weightᵀ) · factor + bias, for kMostHeadRows rows at most;
  // the rest of y's rows is left alone. Products are added without being rounded before.
  void (*head)(const HeadColumns& columns, const float* x, size_t rows, float* y, size_t stride);

  // y[rows, stride] = x[rows, depth] · weight; the rest of y's rows is left alone. Products are added
  // without being rounded before.
  void (*multiply)(const MatrixColumns& matrix, const FloatRows& x, float* y, size_t stride);

  // x[count] becomes its softmax; x has room up to a multiple of kFloatLanes.
  void (*softmax)(float* x, size_t count);

  // x[count] becomes e^(x + bias - their maximum), a softmax but for the division by its sum, which
  // is returned. bias[count] may be null; x has room up to a multiple of kFloatLanes.
  float (*exponentials)(float* x, const float* bias, size_t count);
};

const AttentionKernels& scalar_attention_kernels();
// Null where this build has none.
const AttentionKernels* avx2_attention_kernels();
const AttentionKernels* avx512_attention_kernels();

// Calls the function for the elements that a head has.
inline void attend(const AttentionKernels& kernels, const AttentionHead<float>& head,
                   const AttentionQuery* queries, size_t count, float* scores, size_t stride) {
  kernels.attend(head, queries, count, scores, stride);
}
inline void attend(const AttentionKernels& kernels, const AttentionHead<int8_t>& head,
                   const AttentionQuery* queries, size_t count, float* scores, size_t stride) {
  kernels.attend_int8(head, queries, count, scores, stride);
}

// The kernels of an instruction set, or null where processor or build lack it.
const AttentionKernels* attention_kernels_for(drl_isa isa);

}  // namespace drl
