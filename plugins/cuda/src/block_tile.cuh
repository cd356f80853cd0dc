// A group's rows through its expert's matrices, by one block: warps share the columns, the rows
// and, where they are more than that, the depth.
#pragma once

#include "groups.cuh"
#include "product.cuh"

namespace drl {

// kMatrices products at once (up and gate), each over kWarpRows · kTiles · 16 rows and kWarpColumns
// tiles of columns.
template <typename F, typename W, int kColumns, int kTiles, int kMatrices, int kWarpRows,
          int kWarpColumns>
class BlockTile {
 public:
  using Tile = WarpTile<F, W, kColumns>;
  static constexpr int kSplit = kWarps / (kMatrices * kWarpRows * kWarpColumns);
  static constexpr int kWarpHeight = 16 * kTiles;  // rows of a warp
  static constexpr int kRows = kWarpHeight * kWarpRows;
  static constexpr int kWidth = kWarpColumns * Tile::kWidth;
  static constexpr int kPitch = Tile::kWidth + 4;  // so that rows start in different banks
  static_assert(kTiles == 1 || kTiles == 2 || kTiles == 4, "1, 2 or 4 tiles of rows");
  static_assert(kWarpRows == 1 || kTiles == 4, "warps share rows where there are many");
  static_assert(kSplit >= 1 && kMatrices * kWarpRows * kWarpColumns * kSplit == kWarps, "8 warps");

  // What each warp has for 16 rows.
  struct Partials {
    float values[kWarps][16][kPitch];
  };

  // The products of one column with 16 rows.
  struct Sums {
    const Partials& partials;
    int column;    // of the block's
    int row_part;  // which warps hold the rows
    int begin;     // the first of the rows, of the group's
    int end;       // past the last that there is

    // The product with a matrix: what its warps have, in their order.
    __device__ float at(int row, int matrix = 0) const {
      const int warp =
          ((matrix * kWarpRows + row_part) * kWarpColumns + column / Tile::kWidth) * kSplit;
      float sum = partials.values[warp][row - begin][column % Tile::kWidth];
#pragma unroll
      for (int part = 1; part < kSplit; ++part) {
        sum += partials.values[warp + part][row - begin][column % Tile::kWidth];
      }
      return sum;
    }
  };

  // `row_of(r)` is the row of given[·].rows that stands for row r of the group, for r < count.
  // `store(r, column, sums)` is called once for every r < count and every column of the block's
  // that there is; sums has the products of that column with r and its neighbours. All threads
  // must call this.
  template <typename RowOf, typename Store>
  __device__ static void run(Partials& partials, const Operands<F, W> (&given)[kMatrices],
                             int count, int column0, RowOf row_of, Store store) {
    if constexpr (kTiles >= 4) {
      if (count > 32) return run_tiles<4>(partials, given, count, column0, row_of, store);
    }
    if constexpr (kTiles >= 2) {
      if (count > 16) return run_tiles<2>(partials, given, count, column0, row_of, store);
    }
    run_tiles<1>(partials, given, count, column0, row_of, store);
  }

 private:
  template <int kUsed, typename RowOf, typename Store>
  __device__ static void run_tiles(Partials& partials, const Operands<F, W> (&given)[kMatrices],
                                   int count, int column0, RowOf row_of, Store store) {
    const int warp = threadIdx.x / 32;
    const int depth_part = warp % kSplit;
    const int column_part = warp / kSplit % kWarpColumns;
    const int row_part = warp / (kSplit * kWarpColumns) % kWarpRows;
    const int matrix = warp / (kSplit * kWarpColumns * kWarpRows);
    const int row0 = kWarpHeight * row_part;
    float acc[kUsed][kColumns][4] = {};
    if (row0 < count) {
      int rows[2 * kUsed];
      const int g = (threadIdx.x & 31) >> 2;
#pragma unroll
      for (int i = 0; i < 2 * kUsed; ++i) {
        const int r = row0 + 8 * i + g;
        rows[i] = r < count ? row_of(r) : -1;
      }
      Operands<F, W> mine = given[0];
      if (matrix == 1) {  // all else is the same
        mine.weight = given[kMatrices - 1].weight;
        mine.aligned = given[kMatrices - 1].aligned;
      }
      Tile::template accumulate<kUsed>(acc, mine, rows, column0 + column_part * Tile::kWidth,
                                        depth_part, kSplit);
    }
#pragma unroll
    for (int m = 0; m < kUsed; ++m) {
      __syncthreads();  // the partials may still be read, by an earlier call too
      if (row0 < count) write(partials.values[warp], acc[m]);
      __syncthreads();
      read(partials, 16 * m, count, given[0].columns, column0, store);
    }
  }

  __device__ static void write(float (&values)[16][kPitch], const float (&acc)[kColumns][4]) {
    const int g = (threadIdx.x & 31) >> 2;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      values[g][Tile::column(j, false)] = acc[j][0];
      values[g][Tile::column(j, true)] = acc[j][1];
      values[g + 8][Tile::column(j, false)] = acc[j][2];
      values[g + 8][Tile::column(j, true)] = acc[j][3];
    }
  }

  template <typename Store>
  __device__ static void read(const Partials& partials, int first_row, int count, int columns,
                              int column0, Store store) {
    for (int i = threadIdx.x; i < kWarpRows * 16 * kWidth; i += kThreads) {
      const int column = i % kWidth;
      const int row_part = i / (kWidth * 16);
      const int begin = kWarpHeight * row_part + first_row;
      const int row = begin + i / kWidth % 16;
      if (row >= count || column0 + column >= columns) continue;
      store(row, column0 + column,
            Sums{partials, column, row_part, begin, min(begin + 16, count)});
    }
  }
};

}  // namespace drl
