// What launches a kernel, apart from what the kernel sees.
#pragma once

#include <functional>

namespace drl::emulation {

// Runs the kernel for every block; returns what went wrong, or an empty text.
const char* launch(const std::function<void()>& kernel, const unsigned (&grid)[3], int threads,
                   unsigned seed);

}  // namespace drl::emulation
