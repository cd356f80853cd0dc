// The callbacks of an operator, made from a struct that describes it.
//
// `Op` has kName, kInputs and kOutputs (the arguments in their order), configure(Attributes&),
// which reads the attributes once, and compute(Call&) const, which any number of threads may run at
// once.
#pragma once

#include <iterator>
#include <new>

#include "attributes.h"
#include "call.h"
#include "operators.h"

namespace drl::ort {

template <class Op>
struct OperatorTable : CustomOp {
  OperatorTable() : CustomOp{} {
    version = kApiVersion;
    GetName = [](const CustomOp*) { return Op::kName; };
    GetExecutionProviderType = [](const CustomOp*) -> const char* { return nullptr; };  // the CPU
    GetInputTypeCount = [](const CustomOp*) { return std::size(Op::kInputs); };
    GetInputType = [](const CustomOp*, size_t index) { return Op::kInputs[index].type; };
    GetInputCharacteristic = [](const CustomOp*, size_t i) { return Op::kInputs[i].presence; };
    GetInputMemoryType = [](const CustomOp*, size_t) { return MemoryType::kDefault; };
    GetOutputTypeCount = [](const CustomOp*) { return std::size(Op::kOutputs); };
    GetOutputType = [](const CustomOp*, size_t index) { return Op::kOutputs[index].type; };
    GetOutputCharacteristic = [](const CustomOp*, size_t) { return Presence::kRequired; };
    GetVariadicInputMinArity = [](const CustomOp*) { return 0; };
    GetVariadicInputHomogeneity = [](const CustomOp*) { return 0; };
    GetVariadicOutputMinArity = [](const CustomOp*) { return 0; };
    GetVariadicOutputHomogeneity = [](const CustomOp*) { return 0; };
    GetStartVersion = [](const CustomOp*) { return 1; };
    GetEndVersion = [](const CustomOp*) { return 1; };
    CreateKernelV2 = create;
    KernelComputeV2 = compute;
    KernelDestroy = destroy;
  }

 private:
  struct Kernel {
    Environment environment;
    Op op;
  };

  static Status* create(const CustomOp*, const Api* api, const KernelInfo* info, void** out) {
    Failure failure(*api, Op::kName);
    Kernel* kernel = new (std::nothrow) Kernel{};
    if (kernel == nullptr) {
      failure.say("no memory for its kernel");
      return failure.status();
    }
    Environment& environment = kernel->environment;
    environment.api = api;
    const drl_status isa = drl_default_isa(&environment.isa);
    if (isa != DRL_OK) failure.say("%s", drl_status_message(isa));
    Attributes attributes(failure, info);
    kernel->op.configure(attributes);
    failure.keep(KernelInfo_GetInputCount::call(*api, info, &environment.inputs));
    failure.keep(
        KernelInfoGetAllocator::call(*api, info, MemoryType::kDefault, &environment.allocator));
    if (failure.none()) {
      *out = kernel;
    } else {
      destroy(kernel);
    }
    return failure.status();
  }

  static Status* compute(void* self, KernelContext* context) {
    const Kernel& kernel = *static_cast<const Kernel*>(self);
    Call call(kernel.environment, context, Op::kName, Op::kInputs);
    kernel.op.compute(call);
    return call.failure().status();
  }

  static void destroy(void* self) {
    Kernel* kernel = static_cast<Kernel*>(self);
    // Null where making the kernel failed early; ONNX Runtime takes that.
    ReleaseAllocator::call(*kernel->environment.api, kernel->environment.allocator);
    delete kernel;
  }
};

// An operator that has no kernel here for another float type than float32. ONNX Runtime refuses
// types that no operator of the name declares, even where the graph brings a function for it. So
// this declares them, for an execution provider that does not exist: no kernel is found, and the
// function is taken.
template <class Op, ElementType kFloatType>
struct WithoutKernel : OperatorTable<Op> {
  WithoutKernel() {
    this->GetExecutionProviderType = [](const CustomOp*) { return "DRLFunctionBody"; };
    this->GetInputType = [](const CustomOp*, size_t i) { return replaced(Op::kInputs[i]); };
    this->GetOutputType = [](const CustomOp*, size_t i) { return replaced(Op::kOutputs[i]); };
  }

 private:
  static ElementType replaced(const Argument& argument) {
    return argument.any_float ? kFloatType : argument.type;
  }
};

template <class Op>
Tables of_float32() {
  static const OperatorTable<Op> table;
  return {{&table}};
}

template <class Op>
Tables of_any_float() {
  static const OperatorTable<Op> table;
  static const WithoutKernel<Op, ElementType::kFloat16> half;
  static const WithoutKernel<Op, ElementType::kBfloat16> brain;
  return {{&table, &half, &brain}};
}

constexpr ElementType kFloat = ElementType::kFloat;
constexpr ElementType kUint8 = ElementType::kUint8;
constexpr ElementType kInt8 = ElementType::kInt8;
constexpr ElementType kInt32 = ElementType::kInt32;
constexpr ElementType kInt64 = ElementType::kInt64;
constexpr ElementType kBool = ElementType::kBool;

}  // namespace drl::ort
