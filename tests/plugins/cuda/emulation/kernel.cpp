// One kernel as a function of the library that the tests load: DRL_SOURCE names its file,
// DRL_KERNEL the function.
#include DRL_SOURCE

#include <utility>

#include "machine_entry.h"

namespace {

template <typename... Arguments, std::size_t... kIndices>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<kIndices...>) {
  kernel(*static_cast<Arguments*>(arguments[kIndices])...);
}

template <typename... Arguments>
int count(void (*)(Arguments...)) {
  return sizeof...(Arguments);
}

template <typename... Arguments>
void call(void (*kernel)(Arguments...), void** arguments) {
  call(kernel, arguments, std::index_sequence_for<Arguments...>{});
}

}  // namespace

extern "C" {

int drl_arguments() { return count(&DRL_KERNEL); }

const char* drl_launch(void** arguments, unsigned x, unsigned y, unsigned z, int threads,
                       unsigned seed) {
  return drl::emulation::launch([=] { call(&DRL_KERNEL, arguments); }, {x, y, z}, threads, seed);
}
}
