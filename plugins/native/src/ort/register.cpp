// The entry point that ONNX Runtime calls when the library is registered with a session's options.
#include <cstdio>
#include <cstdlib>

#include "../drl_native.h"
#include "operators.h"

namespace drl::ort {
namespace {

constexpr Tables (*kOperators[])() = {
    cached_attention,
    cross_attention,
    encoder_attention,
    expert_route,
    head,
    linear,
    projections,
    quantize_states,
    quantized_cached_attention,
    quantized_cross_attention,
    quantized_gather,
    quantized_head,
    quantized_linear,
    quantized_projections,
    quantized_routed_ffn,
    routed_ffn};

constexpr uint32_t kMostVersions = 1000;

// Whether a version such as "1.25.1" has the interface of version kApiVersion.
bool recent(const char* version) {
  char* end = nullptr;
  const long major = std::strtol(version, &end, 10);
  const long minor = *end == '.' ? std::strtol(end + 1, nullptr, 10) : 0;
  return major > 1 || (major == 1 && minor >= static_cast<long>(kApiVersion));
}

// Any table of functions, since the one that makes a status stands first in all of them. The first
// version is in every ONNX Runtime so far; later ones are asked for in case one drops it. An older
// ONNX Runtime is asked for nothing newer than itself: it would print a warning of its own.
const Api* any_table(const ApiBase& base, uint32_t versions) {
  for (uint32_t version = 1; version < versions; ++version) {
    const Api* api = base.GetApi(version);
    if (api != nullptr) return api;
  }
  return nullptr;
}

Status* refuse(const ApiBase& base) {
  const char* version = base.GetVersionString();
  char line[256];
  if (recent(version)) {
    std::snprintf(line, sizeof line,
                  "ONNX Runtime %s does not offer version %u of its interface any more, which "
                  "drl's native operators need; install a newer drl",
                  version, kApiVersion);
  } else {
    std::snprintf(line, sizeof line,
                  "drl's native operators need ONNX Runtime 1.%u or newer, and this is %s; "
                  "upgrade it",
                  kApiVersion, version);
  }
  const Api* api = any_table(base, recent(version) ? kMostVersions : kApiVersion);
  if (api != nullptr) return CreateStatus::call(*api, ErrorCode::kFail, line);
  // Without any table nothing can be reported, and null would mean success.
  std::fprintf(stderr, "%s\n", line);
  std::abort();
}

Status* add_operators(const Api& api, SessionOptions* options) {
  // Sessions keep pointers to the domain and nobody says when the last is gone, so its few bytes
  // stay. A domain per call serves processes with several copies of ONNX Runtime, too.
  CustomOpDomain* domain = nullptr;
  Status* status = CreateCustomOpDomain::call(api, "drl", &domain);
  for (const auto tables : kOperators) {
    for (const CustomOp* op : tables().each) {
      if (status == nullptr && op != nullptr) status = CustomOpDomain_Add::call(api, domain, op);
    }
  }
  return status == nullptr ? AddCustomOpDomain::call(api, options, domain) : status;
}

}  // namespace
}  // namespace drl::ort

extern "C" DRL_EXPORT drl::ort::Status* RegisterCustomOps(drl::ort::SessionOptions* options,
                                                          const drl::ort::ApiBase* base) {
  using namespace drl::ort;
  const bool known = recent(base->GetVersionString());
  // Asking an older one for the table would make it print a warning of its own.
  const Api* api = known ? base->GetApi(kApiVersion) : nullptr;
  return api == nullptr ? refuse(*base) : add_operators(*api, options);
}
