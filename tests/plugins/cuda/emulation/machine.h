// Runs the threads of a block as fibres of one thread of the host.
//
// A fibre runs until it waits: for its block at a barrier, or for its warp in an instruction that
// all lanes take part in. What runs first is decided by a seed, so that a missing barrier shows.
#pragma once

#include <cstring>

namespace drl::emulation {

struct Index {
  unsigned x, y, z;
};

const Index& current_thread();
const Index& current_block();
int lane();

// Ends the launch with this message. Does not return.
[[noreturn]] void fail(const char* message);

void meet_block();

// Gives `own` to the warp, and waits for what the others give: 32 values of `size` bytes.
void share_bytes(const void* own, void* all, int size);

template <typename T>
void share(const T& own, T (&all)[32]) {
  share_bytes(&own, all, sizeof(T));
}

template <typename T>
T shuffle(unsigned mask, T value, int source) {
  if (mask != 0xffffffffu) fail("a shuffle of a part of a warp");
  T all[32];
  share(value, all);
  return all[source];
}

}  // namespace drl::emulation
