// What went wrong first in a call, as one line that ONNX Runtime hands on: "<Operator>: what, why".
#pragma once

#include <cstdarg>
#include <cstdio>

#include "abi.h"

#if defined(__GNUC__)
#define DRL_PRINTF(text, values) __attribute__((format(printf, text, values)))
#else
#define DRL_PRINTF(text, values)
#endif

namespace drl::ort {

class Failure {
 public:
  Failure(const Api& api, const char* operator_name) : api_(api), operator_name_(operator_name) {}
  Failure(const Failure&) = delete;
  Failure& operator=(const Failure&) = delete;

  bool none() const { return status_ == nullptr; }

  // Keeps the status of a function of ONNX Runtime, if it is the first that is bad.
  bool keep(Status* status) {
    if (status_ == nullptr) {
      status_ = status;
    } else if (status != nullptr) {
      ReleaseStatus::call(api_, status);
    }
    return status_ == nullptr;
  }

  DRL_PRINTF(2, 3) void say(const char* format, ...) {
    if (status_ != nullptr) return;
    char line[512];
    const int start = std::snprintf(line, sizeof line, "%s: ", operator_name_);
    va_list values;
    va_start(values, format);
    std::vsnprintf(line + start, sizeof line - start, format, values);
    va_end(values);
    status_ = CreateStatus::call(api_, ErrorCode::kInvalidArgument, line);
  }

  // The caller's from here on.
  Status* status() const { return status_; }

  const Api& api() const { return api_; }

 private:
  const Api& api_;
  const char* operator_name_;
  Status* status_ = nullptr;
};

}  // namespace drl::ort
