// Compares src/ort/abi.h with ONNX Runtime's own header. That it compiles is the test.
#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#else
#include <onnxruntime/onnxruntime_c_api.h>
#endif

#include <cstddef>
#include <type_traits>

#include "../../../plugins/native/src/ort/abi.h"

static_assert(ORT_API_VERSION >= drl::ort::kApiVersion, "a header of the minimum version or newer");

// Types that are handed over the same way: pointers, and numbers and enums of one size.
template <class Theirs, class Ours>
struct Alike {
  static constexpr bool kPointers = std::is_pointer_v<Theirs> && std::is_pointer_v<Ours>;
  static constexpr bool kNumbers = !std::is_pointer_v<Theirs> && !std::is_pointer_v<Ours> &&
                                   sizeof(Theirs) == sizeof(Ours) &&
                                   std::is_floating_point_v<Theirs> ==
                                       std::is_floating_point_v<Ours>;
  static constexpr bool value = kPointers || kNumbers;
};

template <>
struct Alike<void, void> : std::true_type {};

// Function pointers, argument by argument. Whether they may throw does not matter to a call.
template <class Theirs, class Ours>
struct SameCall : std::false_type {};

template <class R, class... A, class S, class... B>
struct SameCall<R (*)(A...), S (*)(B...)> {
  static constexpr bool value = [] {
    if constexpr (sizeof...(A) == sizeof...(B)) {
      return (Alike<R, S>::value && ... && Alike<A, B>::value);
    }
    return false;
  }();
};

template <class R, class... A, class S, class... B>
struct SameCall<R (*)(A...) noexcept, S (*)(B...)> : SameCall<R (*)(A...), S (*)(B...)> {};

#define SAME_FUNCTION(name)                                                                   \
  static_assert(offsetof(OrtApi, name) == drl::ort::name::kIndex * sizeof(void*), "index");   \
  static_assert(drl::ort::name::kIndex < sizeof(drl::ort::Api) / sizeof(void*), "in table");  \
  static_assert(SameCall<decltype(OrtApi::name), drl::ort::name::Pointer>::value, "signature")

SAME_FUNCTION(CreateStatus);
SAME_FUNCTION(CreateCustomOpDomain);
SAME_FUNCTION(CustomOpDomain_Add);
SAME_FUNCTION(AddCustomOpDomain);
SAME_FUNCTION(GetTensorMutableData);
SAME_FUNCTION(KernelInfoGetAttribute_float);
SAME_FUNCTION(KernelInfoGetAttribute_int64);
SAME_FUNCTION(KernelInfoGetAttribute_string);
SAME_FUNCTION(KernelContext_GetInput);
SAME_FUNCTION(KernelContext_GetOutput);
SAME_FUNCTION(ReleaseStatus);
SAME_FUNCTION(ReleaseAllocator);
SAME_FUNCTION(KernelInfo_GetInputCount);
SAME_FUNCTION(KernelContext_ParallelFor);
SAME_FUNCTION(KernelInfoGetAllocator);
SAME_FUNCTION(GetTensorData);
SAME_FUNCTION(GetTensorElementTypeAndShapeDataReference);

#define SAME_FIELD(Theirs, Ours, name) \
  static_assert(offsetof(Theirs, name) == offsetof(drl::ort::Ours, name), "offset")
#define SAME_CALLBACK(Theirs, Ours, name) \
  SAME_FIELD(Theirs, Ours, name);         \
  static_assert(SameCall<decltype(Theirs::name), decltype(drl::ort::Ours::name)>::value, "type")

SAME_CALLBACK(OrtApiBase, ApiBase, GetApi);
SAME_CALLBACK(OrtApiBase, ApiBase, GetVersionString);
SAME_FIELD(OrtAllocator, Allocator, version);
SAME_CALLBACK(OrtAllocator, Allocator, Alloc);
SAME_CALLBACK(OrtAllocator, Allocator, Free);

// ONNX Runtime reads no further than `version` says, so a newer header may have more fields.
static_assert(sizeof(OrtCustomOp) >= sizeof(drl::ort::CustomOp), "size");
SAME_FIELD(OrtCustomOp, CustomOp, version);
SAME_FIELD(OrtCustomOp, CustomOp, CreateKernel);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetName);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetExecutionProviderType);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetInputType);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetInputTypeCount);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetOutputType);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetOutputTypeCount);
SAME_FIELD(OrtCustomOp, CustomOp, KernelCompute);
SAME_CALLBACK(OrtCustomOp, CustomOp, KernelDestroy);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetInputCharacteristic);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetOutputCharacteristic);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetInputMemoryType);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetVariadicInputMinArity);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetVariadicInputHomogeneity);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetVariadicOutputMinArity);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetVariadicOutputHomogeneity);
SAME_CALLBACK(OrtCustomOp, CustomOp, CreateKernelV2);
SAME_CALLBACK(OrtCustomOp, CustomOp, KernelComputeV2);
SAME_FIELD(OrtCustomOp, CustomOp, InferOutputShapeFn);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetStartVersion);
SAME_CALLBACK(OrtCustomOp, CustomOp, GetEndVersion);
SAME_FIELD(OrtCustomOp, CustomOp, GetMayInplace);
SAME_FIELD(OrtCustomOp, CustomOp, ReleaseMayInplace);
SAME_FIELD(OrtCustomOp, CustomOp, GetAliasMap);
SAME_FIELD(OrtCustomOp, CustomOp, ReleaseAliasMap);

#define SAME_NUMBER(theirs, Ours, ours)                                                  \
  static_assert(static_cast<int>(theirs) == static_cast<int>(drl::ort::Ours::ours), ""); \
  static_assert(sizeof(theirs) == sizeof(drl::ort::Ours), "")

SAME_NUMBER(ORT_FAIL, ErrorCode, kFail);
SAME_NUMBER(ORT_INVALID_ARGUMENT, ErrorCode, kInvalidArgument);
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, ElementType, kUndefined);
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ElementType, kFloat);
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ElementType, kUint8);
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, ElementType, kInt8);
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ElementType, kInt32);
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ElementType, kInt64);
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, ElementType, kBool);
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ElementType, kFloat16);
SAME_NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16, ElementType, kBfloat16);
SAME_NUMBER(INPUT_OUTPUT_REQUIRED, Presence, kRequired);
SAME_NUMBER(INPUT_OUTPUT_OPTIONAL, Presence, kOptional);
SAME_NUMBER(OrtMemTypeDefault, MemoryType, kDefault);
