// The product of a group's rows with its expert's matrix, on the tensor cores.
//
// A warp multiplies up to 64 rows by 8 · kColumns columns. Weights go from memory to registers, in
// loads of up to 16 bytes, and nowhere else: the operand that an m16n8k16 instruction wants of a
// lane is what the lane has loaded. For this, n-tile j of the instruction stands for the columns
// n · kColumns + j (n = 0 … 7), and the k of the instruction are permuted so that a lane's k are
// consecutive in memory, in rows and weights alike.
//
// All sums have one fixed order, which depends on the sizes of the matrix only: the result of a
// row does not depend on what else is in the group, nor on kColumns.
#pragma once

#include "types.cuh"

namespace drl {

// rows [any, depth], weight [depth, columns], both row by row.
template <typename F, typename W>
struct Operands {
  const F* rows;
  const W* weight;
  int depth;
  int columns;
  bool aligned;  // every 16 bytes from the start of a row of either are 16 aligned bytes
};

template <typename F, typename W>
__device__ inline Operands<F, W> make_operands(const F* rows, const W* weight, int expert,
                                               int depth, int columns) {
  const W* matrix = weight + static_cast<long long>(expert) * depth * columns;
  const bool fit = depth % 8 == 0 && columns % (16 / static_cast<int>(sizeof(W))) == 0;
  return {rows, matrix, depth, columns, fit && is_aligned(rows) && is_aligned(matrix)};
}

template <typename F, typename W, int kColumns>
class WarpTile {
 public:
  static constexpr int kWidth = 8 * kColumns;                     // columns of the tile
  static constexpr int kWords = kColumns * sizeof(W) / 4;         // of a load
  static constexpr int kBlocks = kColumns == 8 ? 2 : 4;            // instructions along k in a step
  static constexpr int kSpan = 64;                                // k of a turn: four blocks
  static_assert(kWords == 1 || kWords == 2 || kWords == 4, "a load has 4, 8 or 16 bytes");

  // acc[m][j] is the instruction's result for 16 rows and n-tile j. rows[2m] and rows[2m + 1] are
  // the lane's rows of operands.rows, -1 for none. Turns `begin`, `begin + stride`, … are summed.
  template <int kTiles>
  __device__ static void accumulate(float (&acc)[kTiles][kColumns][4], const Operands<F, W>& given,
                                    const int (&rows)[2 * kTiles], int column0, int begin,
                                    int stride) {
    if (given.aligned) {
      sum_turns<kTiles, true>(acc, given, rows, column0, begin, stride);
    } else {
      sum_turns<kTiles, false>(acc, given, rows, column0, begin, stride);
    }
  }

  // Column of the tile that element 0 or 2 (`odd` false), 1 or 3 (true) of acc[m][j] belongs to.
  __device__ static int column(int j, bool odd) {
    const int q = threadIdx.x & 3;
    return (2 * q + odd) * kColumns + j;
  }

 private:
  // A lane's columns of four rows for each block of a step.
  using Weights = unsigned[kBlocks][4][kWords];

  template <int kTiles, bool kAligned>
  __device__ static void sum_turns(float (&acc)[kTiles][kColumns][4], const Operands<F, W>& given,
                                   const int (&rows)[2 * kTiles], int column0, int begin,
                                   int stride) {
    int k = begin * kSpan;
    if (k >= given.depth) return;
    Weights weights;
    // The next step's weights are under way while these are multiplied, if there are registers
    // for both: 64 rows leave none.
    constexpr bool kAhead = kAligned && kTiles < 4;
    if constexpr (kAhead) load_weights<kAligned>(weights, given, column0, k);
#pragma unroll 1
    while (k < given.depth) {
      const int next_k = following(k, stride);
      Weights next;
      if constexpr (kAhead) {
        load_weights<kAligned>(next, given, column0, next_k);  // past the end: zeros, and no load
      } else {
        load_weights<kAligned>(weights, given, column0, k);
      }
      multiply_step<kTiles, kAligned>(acc, given, rows, weights, k);
      if constexpr (kAhead) copy(weights, next);
      k = next_k;
    }
  }

  __device__ static void copy(Weights& to, const Weights& from) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int w = 0; w < kWords; ++w) to[block][r][w] = from[block][r][w];
      }
    }
  }

  // Of the 64 k of a turn a lane has 16 consecutive ones, four per block. This is so whether a
  // step is a whole turn or half of one, and with it the order of sums.
  __device__ static int first_k(int step_k) {
    const int q = threadIdx.x & 3;
    return step_k + 16 * q;
  }

  // Where the step after the one at k begins.
  __device__ static int following(int k, int stride) {
    if constexpr (kBlocks == 2) {
      if (k % 16 == 0) return k + 8;
      k -= 8;
    }
    return k + stride * kSpan;
  }

  template <bool kAligned>
  __device__ static void load_weights(Weights& loaded, const Operands<F, W>& given, int column0,
                                      int step_k) {
    const int column = column0 + ((threadIdx.x & 31) >> 2) * kColumns;
#pragma unroll
    for (int pair = 0; pair < kBlocks / 2; ++pair) {
      const int k0 = first_k(step_k) + 8 * pair;
      // Aligned rows come in eights: all of the lane's eight k are there, or none.
      const bool there = k0 < given.depth && column < given.columns;
      const W* address = given.weight + static_cast<long long>(k0) * given.columns + column;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        unsigned(&words)[kWords] = loaded[2 * pair + i / 4][i % 4];
        clear(words);
        if constexpr (kAligned) {
          if (there) load_once(words, address);
        } else {
          if (there && k0 + i < given.depth) gather(words, address, given.columns - column);
        }
        address += given.columns;
      }
    }
  }

  // Four or eight k of a row.
  template <bool kAligned, int kCount>
  __device__ static void load_row(unsigned (&words)[kCount], const Operands<F, W>& given, int row,
                                  int k) {
    clear(words);
    if (row < 0 || k >= given.depth) return;
    const F* address = given.rows + static_cast<long long>(row) * given.depth + k;
    if constexpr (kAligned) {
      load_often(words, address);
    } else {
      gather(words, address, given.depth - k);
    }
  }

  template <int kCount>
  __device__ static void clear(unsigned (&words)[kCount]) {
#pragma unroll
    for (int w = 0; w < kCount; ++w) words[w] = 0;
  }

  // Fills zeros with the elements that there are, as a load would.
  template <typename T, int kCount>
  __device__ static void gather(unsigned (&words)[kCount], const T* address, int available) {
    constexpr int kSize = sizeof(T);
#pragma unroll
    for (int i = 0; i < 4 * kCount / kSize; ++i) {
      if (i < available) words[i * kSize / 4] |= bits_of(address[i]) << (8 * (i * kSize % 4));
    }
  }

  template <int kTiles, bool kAligned>
  __device__ static void multiply_step(float (&acc)[kTiles][kColumns][4],
                                       const Operands<F, W>& given, const int (&rows)[2 * kTiles],
                                       const Weights& weights, int step_k) {
    // 16 bytes of a row serve two blocks; where registers are scarce, 8 bytes one.
    constexpr int kServed = kTiles * kColumns < 16 ? 2 : 1;
    unsigned x[2 * kTiles][2 * kServed];
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      if (block % kServed == 0) {
#pragma unroll
        for (int i = 0; i < 2 * kTiles; ++i) {
          load_row<kAligned>(x[i], given, rows[i], first_k(step_k) + 4 * block);
        }
      }
      const int word = block % kServed * 2;
      unsigned own[4][kColumns / 2];
      widen_block(own, weights[block]);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const unsigned choice = j % 2 == 0 ? 0x5410 : 0x7632;
        const unsigned b0 = __byte_perm(own[0][j / 2], own[1][j / 2], choice);
        const unsigned b1 = __byte_perm(own[2][j / 2], own[3][j / 2], choice);
#pragma unroll
        for (int m = 0; m < kTiles; ++m) {
          const unsigned a[4] = {x[2 * m][word], x[2 * m + 1][word], x[2 * m][word + 1],
                                 x[2 * m + 1][word + 1]};
          multiply(F{}, acc[m][j], a, b0, b1);
        }
      }
    }
  }

  // The lane's columns of four rows, two in a word, in the type of the rows.
  __device__ static void widen_block(unsigned (&own)[4][kColumns / 2],
                                     const unsigned (&words)[4][kWords]) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        if constexpr (sizeof(W) == 1) {
          widen(F{}, words[r][w], own[r][2 * w], own[r][2 * w + 1]);
        } else {
          own[r][w] = words[r][w];
        }
      }
    }
  }
};

}  // namespace drl
