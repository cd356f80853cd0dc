// Shapes and the tensors of a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <initializer_list>

namespace drl::ort {

struct Shape {
  static constexpr size_t kMostDims = 6;

  Shape() = default;
  Shape(std::initializer_list<int64_t> sizes) : rank(sizes.size()) {
    std::memcpy(dims, sizes.begin(), rank * sizeof *dims);
  }

  size_t count() const {
    size_t product = 1;
    for (size_t axis = 0; axis < rank; ++axis) product *= static_cast<size_t>(dims[axis]);
    return product;
  }

  size_t rank = 0;
  int64_t dims[kMostDims] = {};
};

// A shape for a message: "[2, 1, 40]".
class ShapeText {
 public:
  ShapeText(const int64_t* dims, size_t rank) {
    size_t end = append(0, "[");
    for (size_t axis = 0; axis < rank; ++axis) {
      char number[32];
      std::snprintf(number, sizeof number, axis == 0 ? "%lld" : ", %lld",
                    static_cast<long long>(dims[axis]));
      end = append(end, number);
    }
    append(end, "]");
  }
  explicit ShapeText(const char* instead) { append(0, instead); }
  explicit ShapeText(const Shape& shape) : ShapeText(shape.dims, shape.rank) {}

  const char* c_str() const { return text_; }

 private:
  size_t append(size_t end, const char* more) {
    const size_t room = sizeof text_ - 1 - end, length = std::strlen(more);
    const size_t taken = length < room ? length : room;
    std::memcpy(text_ + end, more, taken);
    return end + taken;
  }

  char text_[160] = {};
};

// An input: a view of ONNX Runtime's value, which lives as long as the call.
struct Tensor {
  const void* data = nullptr;     // null where it is empty
  const int64_t* dims = nullptr;  // null for a scalar
  size_t rank = 0;
  bool given = false;

  bool is(const Shape& shape) const {
    return rank == shape.rank &&
           (rank == 0 || std::memcmp(dims, shape.dims, rank * sizeof *dims) == 0);
  }

  // Its shape with another size of the last dimension.
  Shape with_last(int64_t size) const {
    Shape shape;
    shape.rank = rank;
    std::memcpy(shape.dims, dims, (rank - 1) * sizeof *dims);
    shape.dims[rank - 1] = size;
    return shape;
  }

  template <class T>
  const T* values() const {
    return static_cast<const T*>(data);
  }
};

}  // namespace drl::ort
