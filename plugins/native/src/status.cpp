#include "drl_native.h"

extern "C" uint32_t drl_abi_version(void) { return DRL_NATIVE_ABI_VERSION; }

extern "C" const char* drl_status_message(drl_status status) {
  switch (status) {
    case DRL_OK: return "no error";
    case DRL_BAD_ARGUMENT: return "a size is not possible, a pointer is null or not aligned, or an enum has no such value";
    case DRL_UNKNOWN_ISA: return "DRL_NATIVE_ISA must be avx512vnni, avx2 or scalar";
    case DRL_ISA_UNAVAILABLE: return "this processor lacks the instruction set asked for";
    case DRL_WORKSPACE_TOO_SMALL: return "the workspace is too small";
    case DRL_SHAPES_DIFFER: return "the shapes or formats of the packed weights do not fit each other or the call";
    case DRL_NO_SUCH_EXPERT: return "an expert id is outside of [-1, experts)";
    case DRL_CACHE_FULL: return "a row has more tokens than its cache has slots";
    case DRL_NO_SUCH_ROW: return "a row's id is outside of [0, columns)";
  }
  return "unknown error";
}
