// What every operator for ONNX Runtime shares: its table of callbacks, and access to tensors.
#pragma once

#if __has_include(<onnxruntime_c_api.h>)
#include <onnxruntime_c_api.h>
#else
#include <onnxruntime/onnxruntime_c_api.h>
#endif

#include <cstring>

#include "../drl_native.h"

namespace drl::ort {

// The first version with all functions that are used here. ONNX Runtime keeps old versions, so a
// library that asks for this one runs with every later ONNX Runtime, whatever its headers were.
constexpr uint32_t kApiVersion = 17;
static_assert(ORT_API_VERSION >= kApiVersion, "ONNX Runtime's headers must be 1.17 or newer");

inline OrtStatus* error(const OrtApi& api, const char* message) {
  return api.CreateStatus(ORT_INVALID_ARGUMENT, message);
}

// Tensors of one call of a kernel. After the first failure it does nothing but carry the status.
class Call {
 public:
  Call(const OrtApi& api, OrtKernelContext* context) : api_(api), context_(context) {
    keep(api.KernelContext_GetInputCount(context, &inputs_));
  }

  struct Tensor {
    const void* data = nullptr;  // null for an input that is absent or empty
    bool given = false;
    size_t rank = 0;
    int64_t dims[8] = {};

    size_t count() const {
      size_t product = 1;
      for (size_t axis = 0; axis < rank; ++axis) product *= static_cast<size_t>(dims[axis]);
      return product;
    }
    bool is(size_t expected_rank) const { return given && rank == expected_rank; }
  };

  Tensor input(size_t index) {
    Tensor tensor;
    const OrtValue* value = nullptr;
    if (status_ != nullptr || index >= inputs_) return tensor;
    if (!keep(api_.KernelContext_GetInput(context_, index, &value)) || value == nullptr) {
      return tensor;
    }
    tensor.given = true;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    if (!keep(api_.GetTensorTypeAndShape(value, &info))) return tensor;
    if (keep(api_.GetDimensionsCount(info, &tensor.rank))) {
      if (tensor.rank <= 8) {
        keep(api_.GetDimensions(info, tensor.dims, tensor.rank));
      } else {
        fail("a tensor has more than 8 dimensions");
      }
    }
    api_.ReleaseTensorTypeAndShapeInfo(info);
    void* data = nullptr;
    // ONNX Runtime has one function for reading and writing.
    keep(api_.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    tensor.data = data;
    return tensor;
  }

  float* output(const int64_t* dims, size_t rank) {
    OrtValue* value = nullptr;
    void* data = nullptr;
    if (status_ != nullptr) return nullptr;
    if (keep(api_.KernelContext_GetOutput(context_, 0, dims, rank, &value))) {
      keep(api_.GetTensorMutableData(value, &data));
    }
    return static_cast<float*>(data);
  }

  // Tasks on the session's own threads.
  drl_execution execution(drl_isa isa) {
    const drl_parallel_for run = [](void* self, size_t count, drl_task task, void* state) {
      Call& call = *static_cast<Call*>(self);
      call.keep(call.api_.KernelContext_ParallelFor(call.context_, task, count, count, state));
    };
    return {isa, run, this};
  }

  bool ok() const { return status_ == nullptr; }
  void fail(const char* message) { keep(error(api_, message)); }
  void check(drl_status status) {
    if (status != DRL_OK) fail(drl_status_message(status));
  }
  OrtStatus* status() const { return status_; }

 private:
  bool keep(OrtStatus* status) {
    if (status_ == nullptr) {
      status_ = status;
    } else if (status != nullptr) {
      api_.ReleaseStatus(status);
    }
    return status_ == nullptr;
  }

  const OrtApi& api_;
  OrtKernelContext* context_;
  size_t inputs_ = 0;
  OrtStatus* status_ = nullptr;
};

// Memory of the session's allocator for the length of one call.
class Scratch {
 public:
  Scratch(OrtAllocator* allocator, size_t bytes)
      : allocator_(allocator), workspace_{allocator->Alloc(allocator, bytes), bytes} {}
  ~Scratch() { allocator_->Free(allocator_, workspace_.data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  const drl_workspace& workspace() const { return workspace_; }

 private:
  OrtAllocator* allocator_;
  drl_workspace workspace_;
};

// What a kernel keeps between calls.
struct KernelState {
  const OrtApi* api = nullptr;
  OrtAllocator* allocator = nullptr;
  drl_isa isa = DRL_ISA_SCALAR;
  char activation[16] = {};  // the attribute
};

OrtStatus* make_state(const OrtApi* api, const OrtKernelInfo* info, KernelState* state);

// The callbacks of an operator whose kernel is a function. `Op` has kName, kInputs (the types),
// kRequired (how many of the inputs must be given) and compute(const KernelState&, Call&).
template <class Op>
struct CustomOp : OrtCustomOp {
  CustomOp() : OrtCustomOp{} {
    version = kApiVersion;
    GetName = [](const OrtCustomOp*) { return Op::kName; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    GetInputTypeCount = [](const OrtCustomOp*) { return sizeof Op::kInputs / sizeof *Op::kInputs; };
    GetInputType = [](const OrtCustomOp*, size_t index) { return Op::kInputs[index]; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t index) {
      return index < Op::kRequired ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_OPTIONAL;
    };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
    GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
    GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
    GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 0; };
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    CreateKernelV2 = [](const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info,
                        void** kernel) -> OrtStatus* {
      KernelState state;
      OrtStatus* status = make_state(api, info, &state);
      if (status == nullptr) *kernel = new KernelState(state);
      return status;
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) -> OrtStatus* {
      const KernelState& state = *static_cast<KernelState*>(kernel);
      Call call(*state.api, context);
      if (call.ok()) Op::compute(state, call);
      return call.status();
    };
    KernelDestroy = [](void* kernel) {
      KernelState* state = static_cast<KernelState*>(kernel);
      state->api->ReleaseAllocator(state->allocator);
      delete state;
    };
  }
};

constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr ONNXTensorElementDataType kInt32 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
constexpr ONNXTensorElementDataType kBytes = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;

const OrtCustomOp* quantized_linear();
const OrtCustomOp* routed_ffn_int8();

}  // namespace drl::ort
