// The loops of attention, written once over a vector of 16 lanes and compiled for every
// instruction set that includes them (see exponential.h).
//
// Keys and values are float or int8; an int8 is turned into a float when it is loaded.
//
// A Vector holds kFloatLanes floats. It has kRows, the rows of a tile that fit in registers, and
// kHeadRows and kHeadColumns, those of a head's tile, kMatrixRows and kMatrixVectors of a matrix's,
// and kWideVectors of a single row's; broadcast, load, store, +, *, multiply_add,
// maximum, prefetch and sums of its lanes, in the order of sum_tree. in_register keeps a loaded one
// where it is, while GCC would load it again for every product.
#pragma once

#include <cstring>

#include "attention_kernels.h"
#include "softmax.h"
#include "state_rows.h"

namespace drl {
namespace {

// Slots that are taken together, so that one instruction sums the lanes of several.
constexpr size_t kTileSlots = 4;
// Keys or values of so many bytes stay in the fastest cache while all queries pass.
constexpr size_t kBlockBytes = 16 * 1024;
// Of one head's keys or values of int8 so many at most are taken together, however narrow.
constexpr size_t kMostScales = 1024;
// Memory is asked for so far ahead: with few queries this code waits for it, and processors guess
// less well, above all where keys end and values begin. Of int8 it is a whole block, since the
// scales of a block are read before its values.
template <class Element>
constexpr size_t kAheadBytes = sizeof(Element) == 1 ? kBlockBytes : 8192;
constexpr size_t kLineBytes = 64;

template <class Element>
size_t slots_per_block(size_t width) {
  const size_t lanes = kBlockBytes / (row_width<Element>(width) * sizeof(Element)) / kFloatLanes;
  const size_t slots = (lanes == 0 ? 1 : lanes) * kFloatLanes;
  return sizeof(Element) == 1 ? smaller(slots, kMostScales) : slots;
}

// Where that lies which is read kAheadBytes after a place in `now`, which has `count` and is
// followed by `then`. A number, since it may be beyond all arrays, where pointers must not point.
template <class Element>
uintptr_t ahead(const Element* now, size_t place, size_t count, const Element* then) {
  place += kAheadBytes<Element> / sizeof(Element);
  const Element* start = place < count ? now : then;
  return reinterpret_cast<uintptr_t>(start) +
         (place < count ? place : place - count) * sizeof(Element);
}

// Calls body(0) … body(Count - 1). Loops over registers are written with it: in a loop proper, GCC
// keeps their array in memory.
template <size_t Count, class Body>
[[gnu::always_inline]] inline void unrolled(const Body& body) {
  if constexpr (Count > 0) {
    unrolled<Count - 1>(body);
    body(Count - 1);
  }
}

// Calls tile.run<n>(row) for groups of up to `Rows` rows, n being how many from `row` on.
template <size_t Rows, class Tile>
inline void for_rows(size_t first, size_t last, const Tile& tile) {
  if constexpr (Rows > 0) {
    for (; first + Rows <= last; first += Rows) tile.template run<Rows>(first);
    for_rows<Rows - 1>(first, last, tile);
  }
}

// total + a · b. Over int8, whose loads take more instructions, the product is not rounded before.
template <class Element, class Vector>
[[gnu::always_inline]] inline Vector sum(const Vector& total, const Vector& a, const Vector& b) {
  if constexpr (sizeof(Element) == 1) return multiply_add(a, b, total);
  return total + a * b;
}

// Products of queries with the keys of slots [begin, end).
template <class Vector, class Element>
struct ScoreTile {
  const AttentionHead<Element>& head;
  const AttentionQuery* queries;
  size_t begin;
  size_t end;
  size_t slots;  // of all blocks
  float* scores;
  size_t stride;

  template <size_t Rows>
  void run(size_t row) const {
    const size_t last = smaller(end, queries[row + Rows - 1].slots);
    for (size_t slot = begin; slot < last; slot += kTileSlots) {
      const Element* keys[kTileSlots];
      // The last tile repeats a key rather than read beyond; softmax overwrites its product.
      for (size_t i = 0; i < kTileSlots; ++i) {
        keys[i] = head.keys + smaller(slot + i, last - 1) * row_width<Element>(head.width);
      }
      if (row == 0) prefetch(slot);
      float* out = scores + row * stride + slot;
      if (head.width % kFloatLanes == 0) {
        products<Rows, false>(queries + row, keys, out);
      } else {
        products<Rows, true>(queries + row, keys, out);
      }
    }
  }

 private:
  // Inlined, since GCC drops calls of functions that only prefetch.
  [[gnu::always_inline]] void prefetch(size_t slot) const {
    const size_t width = row_width<Element>(head.width);
    const uintptr_t next = ahead(head.keys, slot * width, slots * width, head.values);
    for (size_t i = 0; i < kTileSlots * width * sizeof(Element); i += kLineBytes) {
      Vector::prefetch(next + i);
    }
  }

  template <size_t Rows, bool Rest>
  void products(const AttentionQuery* rows, const Element* const* keys, float* out) const {
    Vector sums[Rows][kTileSlots];
    unrolled<Rows>([&](size_t row) {
      unrolled<kTileSlots>([&](size_t i) { sums[row][i] = Vector::broadcast(0.0f); });
    });
    size_t done = 0;
    for (; done + kFloatLanes <= head.width; done += kFloatLanes) {
      multiply<Rows>(rows, keys, [&](const auto* x) { return Vector::load(x + done); }, sums);
    }
    if constexpr (Rest) {
      const size_t rest = head.width - done;
      multiply<Rows>(rows, keys, [&](const auto* x) { return Vector::load(x + done, rest); },
                     sums);
    }
    unrolled<Rows>([&](size_t row) { Vector::totals(sums[row], out + row * stride); });
  }

  template <size_t Rows, class Load>
  [[gnu::always_inline]] static void multiply(const AttentionQuery* rows,
                                              const Element* const* keys, const Load& load,
                                              Vector (&sums)[Rows][kTileSlots]) {
    Vector key[kTileSlots];
    unrolled<kTileSlots>([&](size_t i) { key[i] = load(keys[i]); });
    unrolled<Rows>([&](size_t row) {
      const Vector q = load(rows[row].q);
      unrolled<kTileSlots>([&](size_t i) { sums[row][i] = sum<Element>(sums[row][i], q, key[i]); });
    });
  }
};

// y += weights · values over slots [begin, end), one slot after the other.
template <class Vector, class Element>
struct MixTile {
  const AttentionHead<Element>& head;
  const AttentionQuery* queries;
  size_t begin;
  size_t end;
  size_t slots;  // of all blocks
  const float* weights;
  size_t stride;

  template <size_t Rows>
  void run(size_t row) const {
    const size_t shared = smaller(end, queries[row].slots);
    if (begin < shared) mix<Rows>(row, begin, shared);
    // Slots that only the later queries see: a causal mask over several tokens.
    if constexpr (Rows > 1) {
      for (size_t i = row; i < row + Rows; ++i) {
        const size_t first = begin < shared ? shared : begin;
        const size_t last = smaller(end, queries[i].slots);
        if (first < last) mix<1>(i, first, last);
      }
    }
  }

 private:
  template <size_t Rows>
  void mix(size_t row, size_t first, size_t last) const {
    size_t column = 0;
    for (; column + 4 * kFloatLanes <= head.width; column += 4 * kFloatLanes) {
      columns<Rows, 4, false>(row, first, last, column);
    }
    for (; column + 2 * kFloatLanes <= head.width; column += 2 * kFloatLanes) {
      columns<Rows, 2, false>(row, first, last, column);
    }
    for (; column + kFloatLanes <= head.width; column += kFloatLanes) {
      columns<Rows, 1, false>(row, first, last, column);
    }
    if (column < head.width) columns<Rows, 1, true>(row, first, last, column);
  }

  template <size_t Rows, size_t Vectors, bool Rest>
  void columns(size_t row, size_t first, size_t last, size_t column) const {
    const size_t rest = head.width - column;
    Vector sums[Rows][Vectors];
    unrolled<Rows>([&](size_t i) {
      unrolled<Vectors>([&](size_t j) {
        sums[i][j] = load<Rest>(queries[row + i].y + column + j * kFloatLanes, rest);
      });
    });
    const float* factors = weights + row * stride;
    const size_t width = row_width<Element>(head.width);
    const Element* values = head.values + first * width + column;
    for (size_t slot = first; slot < last; ++slot, values += width) {
      const uintptr_t next = ahead(head.values, slot * width, slots * width, head.next) +
                             column * sizeof(Element);
      Vector value[Vectors];
      unrolled<Vectors>([&](size_t j) { value[j] = load<Rest>(values + j * kFloatLanes, rest); });
      for (size_t i = 0; i < Vectors * kFloatLanes * sizeof(Element); i += kLineBytes) {
        Vector::prefetch(next + i);
      }
      unrolled<Rows>([&](size_t i) {
        const Vector factor = Vector::broadcast(factors[i * stride + slot]);
        unrolled<Vectors>([&](size_t j) { sums[i][j] = sum<Element>(sums[i][j], factor, value[j]); });
      });
    }
    unrolled<Rows>([&](size_t i) {
      unrolled<Vectors>([&](size_t j) {
        float* y = queries[row + i].y + column + j * kFloatLanes;
        if constexpr (Rest) {
          sums[i][j].store(y, rest);
        } else {
          sums[i][j].store(y);
        }
      });
    });
  }

  template <bool Rest, class Number>
  static Vector load(const Number* x, size_t rest) {
    if constexpr (Rest) {
      return Vector::load(x, rest);
    } else {
      return Vector::load(x);
    }
  }
};

inline void scale_scores(float* scores, float scale, const float* bias, size_t count) {
  if (bias == nullptr) {
    for (size_t i = 0; i < count; ++i) scores[i] = scores[i] * scale;
  } else {
    for (size_t i = 0; i < count; ++i) scores[i] = scores[i] * scale + bias[i];
  }
}

// Multiplies what queries have of the slots [begin, end) with the scales of keys or values.
inline void apply_scales(const float*, size_t, const AttentionQuery*, size_t, size_t, size_t,
                         float*, size_t) {}

inline void apply_scales(const int8_t* rows, size_t width, const AttentionQuery* queries,
                         size_t count, size_t begin, size_t end, float* scores, size_t stride) {
  float scales[kMostScales];
  rows += begin * row_width<int8_t>(width);
  for (size_t slot = begin; slot < end; ++slot, rows += row_width<int8_t>(width)) {
    scales[slot - begin] = scale_of(rows, width);
  }
  for (size_t row = 0; row < count; ++row) {
    const size_t last = smaller(end, queries[row].slots);
    float* own = scores + row * stride;
    for (size_t slot = begin; slot < last; ++slot) own[slot] = own[slot] * scales[slot - begin];
  }
}

template <class Vector, class Element>
void attend(const AttentionHead<Element>& head, const AttentionQuery* queries, size_t count,
            float* scores, size_t stride) {
  const size_t block = slots_per_block<Element>(head.width);
  const size_t slots = queries[count - 1].slots;
  for (size_t begin = 0; begin < slots; begin += block) {
    const size_t end = smaller(begin + block, slots);
    const ScoreTile<Vector, Element> tile{head, queries, begin, end, slots, scores, stride};
    for_rows<Vector::kRows>(0, count, tile);
    apply_scales(head.keys, head.width, queries, count, begin, end, scores, stride);
  }
  for (size_t row = 0; row < count; ++row) {
    const AttentionQuery& query = queries[row];
    scale_scores(scores + row * stride, head.scale, query.bias, query.slots);
    softmax<Vector>(scores + row * stride, query.slots);
    std::memset(query.y, 0, head.width * sizeof(float));
  }
  for (size_t begin = 0; begin < slots; begin += block) {
    const size_t end = smaller(begin + block, slots);
    apply_scales(head.values, head.width, queries, count, begin, end, scores, stride);
    const MixTile<Vector, Element> tile{head, queries, begin, end, slots, scores, stride};
    for_rows<Vector::kRows>(0, count, tile);
  }
}

}  // namespace
}  // namespace drl
