// What the compiler is told about the kernel to make, with defaults that make one.
#pragma once

#ifndef DRL_FLOAT
#define DRL_FLOAT Half
#endif
#ifndef DRL_WEIGHT
#define DRL_WEIGHT Half
#endif
#ifndef DRL_ACTIVATION
#define DRL_ACTIVATION kRelu
#endif
#ifndef DRL_GATED
#define DRL_GATED 0
#endif
#ifndef DRL_BIASED
#define DRL_BIASED 0
#endif
#ifndef DRL_SCALED  // int8 weights
#define DRL_SCALED 0
#endif
#ifndef DRL_COLUMNS  // per lane; a tile has 8 times as many
#define DRL_COLUMNS 4
#endif
#ifndef DRL_TILES  // of 16 rows that a warp takes at most
#define DRL_TILES 4
#endif
#ifndef DRL_WIDE  // many rows per expert: warps share rows and columns, not the depth
#define DRL_WIDE 0
#endif
#ifndef DRL_SINGLE  // k is 1
#define DRL_SINGLE 0
#endif
#ifndef DRL_TOKENS  // per block, where k is not 1
#define DRL_TOKENS 64
#endif
