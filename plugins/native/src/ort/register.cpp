// The entry point that ONNX Runtime calls when the library is registered with a session's options.
#include "custom_op.h"

namespace drl::ort {

OrtStatus* make_state(const OrtApi* api, const OrtKernelInfo* info, KernelState* state) {
  state->api = api;
  const drl_status found = drl_default_isa(&state->isa);
  if (found != DRL_OK) return error(*api, drl_status_message(found));
  size_t size = sizeof state->activation;
  OrtStatus* status =
      api->KernelInfoGetAttribute_string(info, "activation", state->activation, &size);
  if (status != nullptr) return status;
  return api->KernelInfoGetAllocator(info, OrtMemTypeDefault, &state->allocator);
}

}  // namespace drl::ort

extern "C" DRL_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options,
                                                                const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(drl::ort::kApiVersion);
  if (api == nullptr) return nullptr;  // older than the API: it could not read a status either
  // Sessions keep pointers to the domain, so it lives as long as the library.
  static OrtCustomOpDomain* domain = nullptr;
  static OrtStatus* (*const make)(const OrtApi*) = [](const OrtApi* from) -> OrtStatus* {
    OrtStatus* status = from->CreateCustomOpDomain("drl", &domain);
    if (status == nullptr) status = from->CustomOpDomain_Add(domain, drl::ort::quantized_linear());
    if (status == nullptr) status = from->CustomOpDomain_Add(domain, drl::ort::routed_ffn_int8());
    return status;
  };
  static OrtStatus* const made = make(api);
  if (made != nullptr) return api->CreateStatus(ORT_FAIL, api->GetErrorMessage(made));
  return api->AddCustomOpDomain(options, domain);
}
