// The product of a group's rows with its expert's matrix, on the tensor cores.
//
// A warp multiplies up to 64 rows by 8 · kColumns columns. Weights go from memory to registers in
// 16-byte loads and nowhere else: the operand that an m16n8k16 instruction wants of a lane is what
// the lane has loaded. For this, n-tile j of the instruction stands for the columns
// n · kColumns + j (n = 0 … 7), and the k of the instruction are permuted so that a lane's k are
// consecutive in memory, in rows and weights alike.
//
// Where a load holds the columns of several lanes, those load different rows, and exchange.
//
// All sums have one fixed order, which depends on the sizes of the matrix only: the result of a
// row does not depend on what else is in the group.
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
  bool rows_aligned;    // every 8 elements of a row, from its start on, are 16 aligned bytes
  bool weight_aligned;  // the same for 16 bytes of the weight's rows
};

template <typename F, typename W>
__device__ inline Operands<F, W> make_operands(const F* rows, const W* weight, int expert,
                                               int depth, int columns) {
  const W* matrix = weight + static_cast<long long>(expert) * depth * columns;
  return {rows,
          matrix,
          depth,
          columns,
          is_aligned(rows) && depth % 8 == 0,
          is_aligned(matrix) && columns % (16 / static_cast<int>(sizeof(W))) == 0};
}

template <typename F, typename W, int kColumns>
class WarpTile {
 public:
  static constexpr int kVector = 16 / sizeof(W);          // columns of a load
  static constexpr int kShare = kVector / kColumns;       // lanes whose columns a load holds
  static constexpr int kBlocks = kShare < 2 ? 2 : kShare;  // instructions along k in a step
  static constexpr int kSpan = 64;                        // k of a turn: four blocks
  static constexpr int kWidth = 8 * kColumns;             // columns of the tile
  static constexpr int kLoads = kBlocks / kShare;         // blocks that a lane loads itself
  static_assert(kShare == 1 || kShare == 2 || kShare == 4, "1, 2 or 4 lanes share a load");

  // acc[m][j] is the instruction's result for 16 rows and n-tile j. rows[2m] and rows[2m + 1] are
  // the lane's rows of operands.rows, -1 for none. Turns `begin`, `begin + stride`, … are summed.
  template <int kTiles>
  __device__ static void accumulate(float (&acc)[kTiles][kColumns][4], const Operands<F, W>& given,
                                    const int (&rows)[2 * kTiles], int column0, int begin,
                                    int stride) {
    int k = begin * kSpan;
    if (k >= given.depth) return;
    uint4 weights[kLoads][4];
    // The next step's weights are under way while these are multiplied, if there are registers
    // for both: 64 rows by 64 columns leave none.
    constexpr bool kAhead = kTiles * kColumns < 32;
    if constexpr (kAhead) load_weights(weights, given, column0, k);
    while (k < given.depth) {
      const int next_k = following(k, stride);
      uint4 next[kLoads][4];
      if constexpr (kAhead) {
        load_weights(next, given, column0, next_k);  // past the end: zeros, and no load
      } else {
        load_weights(weights, given, column0, k);
      }
      multiply_step<kTiles>(acc, given, rows, weights, k);
      if constexpr (kAhead) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) {
#pragma unroll
          for (int r = 0; r < 4; ++r) weights[i][r] = next[i][r];
        }
      }
      k = next_k;
    }
  }

  // Column of the tile that element 0 or 2 (`odd` false), 1 or 3 (true) of acc[m][j] belongs to.
  __device__ static int column(int j, bool odd) {
    const int q = threadIdx.x & 3;
    return (2 * q + odd) * kColumns + j;
  }

 private:
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

  __device__ static void load_weights(uint4 (&loaded)[kLoads][4], const Operands<F, W>& given,
                                      int column0, int step_k) {
    const int n = (threadIdx.x & 31) >> 2;
    const int column = column0 + n / kShare * kVector;
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int block = n % kShare + kShare * i;
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        loaded[i][r] = load_weight(given, first_k(step_k) + 4 * block + r, column);
      }
    }
  }

  __device__ static uint4 load_weight(const Operands<F, W>& given, int k, int column) {
    uint4 v = {0, 0, 0, 0};
    if (k >= given.depth || column >= given.columns) return v;
    const W* address = given.weight + static_cast<long long>(k) * given.columns + column;
    if (given.weight_aligned) return load_once(address);
    return gather<W, kVector>(address, given.columns - column);
  }

  // The elements that there are, the rest 0, as the 16 bytes that a load would give.
  template <typename T, int kCount>
  __device__ static uint4 gather(const T* address, int available) {
    unsigned words[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < available) {
        unsigned bits;
        if constexpr (sizeof(T) == 1) {
          bits = static_cast<unsigned char>(address[i].value);
        } else {
          bits = address[i].bits;
        }
        words[i * sizeof(T) / 4] |= bits << (8 * (i * sizeof(T) % 4));
      }
    }
    return {words[0], words[1], words[2], words[3]};
  }

  __device__ static uint4 load_row(const Operands<F, W>& given, int row, int k) {
    uint4 v = {0, 0, 0, 0};
    if (row < 0 || k >= given.depth) return v;
    const F* address = given.rows + static_cast<long long>(row) * given.depth + k;
    if (given.rows_aligned) return load_shared_data(address);
    return gather<F, 8>(address, given.depth - k);
  }

  template <int kTiles>
  __device__ static void multiply_step(float (&acc)[kTiles][kColumns][4],
                                       const Operands<F, W>& given, const int (&rows)[2 * kTiles],
                                       const uint4 (&loaded)[kLoads][4], int step_k) {
    unsigned words[kLoads][4][4];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        words[i][r][0] = loaded[i][r].x;
        words[i][r][1] = loaded[i][r].y;
        words[i][r][2] = loaded[i][r].z;
        words[i][r][3] = loaded[i][r].w;
        exchange(words[i][r]);
      }
    }
    // Two blocks take 16 bytes of each row.
#pragma unroll
    for (int pair = 0; pair < kBlocks / 2; ++pair) {
      uint4 x[2 * kTiles];
#pragma unroll
      for (int i = 0; i < 2 * kTiles; ++i) {
        x[i] = load_row(given, rows[i], first_k(step_k) + 8 * pair);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int block = 2 * pair + half;
        unsigned own[4][kColumns / 2];
        take_columns(own, words, block);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const unsigned choice = j % 2 == 0 ? 0x5410 : 0x7632;
          const unsigned b0 = __byte_perm(own[0][j / 2], own[1][j / 2], choice);
          const unsigned b1 = __byte_perm(own[2][j / 2], own[3][j / 2], choice);
#pragma unroll
          for (int m = 0; m < kTiles; ++m) {
            const uint4 &low = x[2 * m], &high = x[2 * m + 1];
            const unsigned a[4] = {half == 0 ? low.x : low.z, half == 0 ? high.x : high.z,
                                   half == 0 ? low.y : low.w, half == 0 ? high.y : high.w};
            multiply(F{}, acc[m][j], a, b0, b1);
          }
        }
      }
    }
  }

  // Lanes that share a load each hold another block of k for all of them. Afterwards each holds
  // its own columns for all of these blocks: piece s is that of block s.
  __device__ static void exchange(unsigned (&words)[4]) {
    constexpr int kPiece = 4 / kShare;
    const int n = (threadIdx.x & 31) >> 2;
#pragma unroll
    for (int bit = 1; bit < kShare; bit *= 2) {
      const bool upper = n & bit;
#pragma unroll
      for (int piece = 0; piece < kShare; ++piece) {
        if (piece & bit) continue;
#pragma unroll
        for (int w = 0; w < kPiece; ++w) {
          unsigned& mine = words[piece * kPiece + w];
          unsigned& partners = words[(piece + bit) * kPiece + w];
          const unsigned received = __shfl_xor_sync(kFullWarp, upper ? mine : partners, 4 * bit);
          if (upper) {
            mine = received;
          } else {
            partners = received;
          }
        }
      }
    }
  }

  // The lane's columns of the four rows of a block, two in a word.
  __device__ static void take_columns(unsigned (&own)[4][kColumns / 2],
                                      const unsigned (&words)[kLoads][4][4], int block) {
    constexpr int kPiece = 4 / kShare;
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const unsigned* piece = &words[block / kShare][r][block % kShare * kPiece];
      if constexpr (sizeof(W) == 1) {
#pragma unroll
        for (int w = 0; w < kColumns / 4; ++w) {
          widen(F{}, piece[w], own[r][2 * w], own[r][2 * w + 1]);
        }
      } else {
#pragma unroll
        for (int w = 0; w < kColumns / 2; ++w) own[r][w] = piece[w];
      }
    }
  }
};

}  // namespace drl
