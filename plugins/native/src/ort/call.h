// One call of a kernel: its tensors, its memory and its threads.
//
// After the first failure a call does nothing but carry it: inputs are null and nothing runs.
#pragma once

#include "../drl_native.h"
#include "failure.h"
#include "tensor.h"

namespace drl::ort {

// An input or output of an operator.
struct Argument {
  const char* name;
  ElementType type;
  Presence presence = Presence::kRequired;
  bool any_float = false;  // float32 here; elsewhere float16 and bfloat16 too
};

constexpr Presence kRequired = Presence::kRequired;
constexpr Presence kOptional = Presence::kOptional;

// What every kernel keeps between calls.
struct Environment {
  const Api* api = nullptr;
  Allocator* allocator = nullptr;
  drl_isa isa = DRL_ISA_SCALAR;
  size_t inputs = 0;  // of the node; optional ones at the end may be left out altogether
};

class Call {
 public:
  Call(const Environment& environment, KernelContext* context, const char* operator_name,
       const Argument* inputs)
      : environment_(environment),
        api_(*environment.api),
        context_(context),
        inputs_(inputs),
        failure_(api_, operator_name) {}

  bool ok() const { return failure_.none(); }
  Failure& failure() { return failure_; }
  const char* name(size_t input) const { return inputs_[input].name; }

  // An input of any shape.
  Tensor tensor(size_t index) {
    Tensor tensor;
    const Value* value = nullptr;
    if (!ok() || index >= environment_.inputs) return tensor;
    if (!failure_.keep(KernelContext_GetInput::call(api_, context_, index, &value))) return tensor;
    if (value == nullptr) return tensor;
    ElementType type;  // what the operator declares; ONNX Runtime has checked it
    if (failure_.keep(GetTensorElementTypeAndShapeDataReference::call(
            api_, value, &type, &tensor.dims, &tensor.rank))) {
      tensor.given = failure_.keep(GetTensorData::call(api_, value, &tensor.data));
    }
    return tensor;
  }

  // An input of `rank` dimensions.
  Tensor tensor(size_t index, size_t rank) { return tensor(index, rank, rank); }
  Tensor tensor(size_t index, size_t least_rank, size_t most_rank) {
    const Tensor found = tensor(index);
    if (ok() && !(found.given && least_rank <= found.rank && found.rank <= most_rank)) {
      char ranks[32];
      std::snprintf(ranks, sizeof ranks, least_rank == most_rank ? "%zu" : "%zu or %zu",
                    least_rank, most_rank);
      failure_.say("%s must have %s dimensions and is %s", name(index), ranks,
                   text(found).c_str());
    }
    return ok() ? found : Tensor();
  }

  // Refuses an input with a dimension of 0 that the kernel cannot do without; `what` says of what.
  void check_some(size_t index, const Tensor& tensor, size_t axis, const char* what) {
    if (ok() && tensor.dims[axis] == 0) {
      failure_.say("%s must have at least one %s and is %s", name(index), what,
                   text(tensor).c_str());
    }
  }

  // The values of an input of this shape; null where the node may leave it out and does.
  template <class T>
  const T* values(size_t index, const Shape& shape) {
    return values<T>(index, shape, inputs_[index].presence);
  }
  template <class T>
  const T* values(size_t index, const Shape& shape, Presence presence) {
    const Tensor found = tensor(index);
    if (ok() && (found.given ? !found.is(shape) : presence == kRequired)) {
      failure_.say("%s must be %s and is %s", name(index), ShapeText(shape).c_str(),
                   text(found).c_str());
    }
    return ok() ? found.values<T>() : nullptr;
  }

  // An output. ONNX Runtime does not load a node that leaves out one of them.
  template <class T>
  T* output(size_t index, const Shape& shape) {
    Value* value = nullptr;
    void* data = nullptr;
    if (ok() && failure_.keep(KernelContext_GetOutput::call(api_, context_, index, shape.dims,
                                                            shape.rank, &value))) {
      failure_.keep(GetTensorMutableData::call(api_, value, &data));
    }
    return static_cast<T*>(data);
  }

  // On the session's threads.
  drl_execution execution() { return {environment_.isa, parallel_for, this}; }

  // Runs a kernel of the C interface on the session's memory and threads.
  template <class Job>
  void run(const Job& job, size_t (*workspace_bytes)(const Job*),
           drl_status (*start)(const Job*, drl_workspace, const drl_execution*)) {
    if (!ok()) return;
    const drl_execution how = execution();
    const size_t bytes = workspace_bytes(&job);
    // Of few rows it is small, and the session's allocator takes longer than all else here.
    if (bytes <= kOnStack) {
      alignas(64) char memory[kOnStack];
      return check(start(&job, {memory, bytes}, &how));
    }
    Allocator* allocator = environment_.allocator;
    void* memory = allocator->Alloc(allocator, bytes);
    if (memory == nullptr) return failure_.say("no memory for %zu bytes", bytes);
    check(start(&job, {memory, bytes}, &how));
    allocator->Free(allocator, memory);
  }

  void check(drl_status status) {
    if (status != DRL_OK) failure_.say("%s", drl_status_message(status));
  }

 private:
  static ShapeText text(const Tensor& tensor) {
    return tensor.given ? ShapeText(tensor.dims, tensor.rank) : ShapeText("missing");
  }

  static constexpr size_t kOnStack = 8192;

  static void parallel_for(void* self, size_t count, drl_task task, void* state) {
    Call& call = *static_cast<Call*>(self);
    if (count == 1) return task(state, 0);
    call.failure_.keep(
        KernelContext_ParallelFor::call(call.api_, call.context_, task, count, count, state));
  }

  const Environment& environment_;
  const Api& api_;
  KernelContext* context_;
  const Argument* inputs_;
  Failure failure_;
};

}  // namespace drl::ort
