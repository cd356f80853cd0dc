// The part of ONNX Runtime's C interface that the operators use.
//
// It is declared here because ONNX Runtime's Python packages bring no headers, and without them
// most installations would have no operators. That is sound, since ONNX Runtime keeps its interface
// compatible: the table of functions only grows at its end, numbers of enums stay, and a table of
// callbacks says in `version` how much of it there is. What holds for one release holds for every
// later one, and a release that broke with that would return no table for kApiVersion.
// tests/plugins/native/test_ort_abi.py compares this file with ONNX Runtime's own header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace drl::ort {

static_assert(sizeof(void*) == 8, "DRL's native kernels need a 64-bit system");

// Version N of the interface came with ONNX Runtime 1.N. This is the first release that has
// everything that bundles need, and the first that the operators are tested with.
constexpr uint32_t kApiVersion = 25;

struct CustomOp;
struct CustomOpDomain;
struct KernelContext;
struct KernelInfo;
struct SessionOptions;
struct Status;  // of a failure; null stands for success
struct Value;

enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2 };

enum class ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kBfloat16 = 16
};

enum class Presence : int { kRequired = 0, kOptional = 1 };

enum class MemoryType : int { kDefault = 0 };

using AnyFunction = void (*)();

// The table of functions, as far as it is used; the real one goes on.
struct Api {
  AnyFunction functions[415];
};

// A function of the table: where it stands, and its signature.
template <size_t kPlace, class Signature>
struct Function;

template <size_t kPlace, class Result, class... Arguments>
struct Function<kPlace, Result(Arguments...)> {
  using Pointer = Result (*)(Arguments...);
  static constexpr size_t kIndex = kPlace;

  static Result call(const Api& api, Arguments... arguments) {
    return reinterpret_cast<Pointer>(api.functions[kPlace])(arguments...);
  }
};

struct Allocator {
  uint32_t version;
  void* (*Alloc)(Allocator* self, size_t bytes);
  void (*Free)(Allocator* self, void* data);
};

using CreateStatus = Function<0, Status*(ErrorCode code, const char* message)>;
using CreateCustomOpDomain = Function<26, Status*(const char* name, CustomOpDomain** domain)>;
using CustomOpDomain_Add = Function<27, Status*(CustomOpDomain* domain, const CustomOp* op)>;
using AddCustomOpDomain = Function<28, Status*(SessionOptions* options, CustomOpDomain* domain)>;
using GetTensorMutableData = Function<51, Status*(Value* value, void** data)>;
using KernelInfoGetAttribute_float =
    Function<85, Status*(const KernelInfo* info, const char* name, float* value)>;
using KernelInfoGetAttribute_int64 =
    Function<86, Status*(const KernelInfo* info, const char* name, int64_t* value)>;
// `size` holds the room at `text` before, and the length with the final zero after.
using KernelInfoGetAttribute_string =
    Function<87, Status*(const KernelInfo* info, const char* name, char* text, size_t* size)>;
// A null value stands for an input that is left out.
using KernelContext_GetInput =
    Function<90, Status*(const KernelContext* context, size_t index, const Value** value)>;
using KernelContext_GetOutput =
    Function<91, Status*(KernelContext* context, size_t index, const int64_t* dims, size_t rank,
                         Value** value)>;
using ReleaseStatus = Function<93, void(Status* status)>;
using ReleaseAllocator = Function<132, void(Allocator* allocator)>;
using KernelInfo_GetInputCount = Function<230, Status*(const KernelInfo* info, size_t* count)>;
using KernelContext_ParallelFor =
    Function<274, Status*(const KernelContext* context, void (*task)(void* state, size_t index),
                          size_t count, size_t batches, void* state)>;
using KernelInfoGetAllocator =
    Function<278, Status*(const KernelInfo* info, MemoryType type, Allocator** allocator)>;
using GetTensorData = Function<378, Status*(const Value* value, const void** data)>;
// The dimensions stay the value's own; nothing is allocated.
using GetTensorElementTypeAndShapeDataReference =
    Function<414, Status*(const Value* value, ElementType* type, const int64_t** dims,
                          size_t* rank)>;

struct ApiBase {
  const Api* (*GetApi)(uint32_t version);  // null where that version is not supported
  const char* (*GetVersionString)();
};

// The callbacks of an operator.
struct CustomOp {
  uint32_t version;  // kApiVersion
  AnyFunction CreateKernel;
  const char* (*GetName)(const CustomOp* self);
  const char* (*GetExecutionProviderType)(const CustomOp* self);
  ElementType (*GetInputType)(const CustomOp* self, size_t index);
  size_t (*GetInputTypeCount)(const CustomOp* self);
  ElementType (*GetOutputType)(const CustomOp* self, size_t index);
  size_t (*GetOutputTypeCount)(const CustomOp* self);
  AnyFunction KernelCompute;
  void (*KernelDestroy)(void* kernel);
  Presence (*GetInputCharacteristic)(const CustomOp* self, size_t index);
  Presence (*GetOutputCharacteristic)(const CustomOp* self, size_t index);
  MemoryType (*GetInputMemoryType)(const CustomOp* self, size_t index);
  int (*GetVariadicInputMinArity)(const CustomOp* self);
  int (*GetVariadicInputHomogeneity)(const CustomOp* self);
  int (*GetVariadicOutputMinArity)(const CustomOp* self);
  int (*GetVariadicOutputHomogeneity)(const CustomOp* self);
  Status* (*CreateKernelV2)(const CustomOp* self, const Api* api, const KernelInfo* info,
                            void** kernel);
  Status* (*KernelComputeV2)(void* kernel, KernelContext* context);
  AnyFunction InferOutputShapeFn;
  int (*GetStartVersion)(const CustomOp* self);
  int (*GetEndVersion)(const CustomOp* self);
  AnyFunction GetMayInplace;
  AnyFunction ReleaseMayInplace;
  AnyFunction GetAliasMap;
  AnyFunction ReleaseAliasMap;
};

}  // namespace drl::ort
