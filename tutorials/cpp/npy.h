// Reads and writes the .npy files the example needs: C order, little-endian; inputs of any type that
// a library takes, outputs of float32.
#pragma once

#include <tvm/ffi/container/tensor.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <regex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace npy {

// 64-byte alignment lets a kernel use aligned vector loads of any width.
struct AlignedAllocator {
  static constexpr size_t kAlignment = 64;

  void AllocData(DLTensor* tensor) {
    size_t bytes = tvm::ffi::GetDataSize(*tensor);
    size_t padded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    tensor->data = std::aligned_alloc(kAlignment, padded == 0 ? kAlignment : padded);
    if (tensor->data == nullptr) throw std::bad_alloc();
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

// The type that a header's 'descr' names; no bits where a library takes no such input.
inline DLDataType TypeOf(const std::string& header) {
  const std::vector<std::pair<std::string, DLDataType>> known = {
      {"'<f4'", {kDLFloat, 32, 1}}, {"'|u1'", {kDLUInt, 8, 1}}, {"'|i1'", {kDLInt, 8, 1}},
      {"'<i2'", {kDLInt, 16, 1}},   {"'<i4'", {kDLInt, 32, 1}}, {"'<i8'", {kDLInt, 64, 1}},
      {"'|b1'", {kDLBool, 8, 1}}};
  for (const auto& [name, type] : known)
    if (header.find(name) != std::string::npos) return type;
  return {kDLFloat, 0, 1};
}

inline tvm::ffi::Tensor Load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + ": cannot be opened");

  // Magic string, version (major, minor), then the header's length: 2 bytes in version 1.
  unsigned char preamble[10];
  file.read(reinterpret_cast<char*>(preamble), sizeof(preamble));
  if (!file || std::memcmp(preamble, "\x93NUMPY\x01", 7) != 0)
    throw std::runtime_error(path + ": not a version 1 .npy file; save it with numpy.save");
  std::string header(preamble[8] + 256 * preamble[9], ' ');
  file.read(header.data(), header.size());
  const DLDataType dtype = TypeOf(header);
  if (dtype.bits == 0 || header.find("'fortran_order': False") == std::string::npos)
    throw std::runtime_error(path + ": expected float32, or the integers that the library takes, in "
                                    "C order; convert it with "
                                    "numpy.ascontiguousarray(x, numpy.float32)");

  std::smatch parenthesized;
  std::regex_search(header, parenthesized, std::regex("'shape': \\(([^)]*)\\)"));
  std::string extents = parenthesized[1];
  std::vector<int64_t> shape;
  const std::regex number("[0-9]+");
  for (std::sregex_iterator it(extents.begin(), extents.end(), number), end; it != end; ++it)
    shape.push_back(std::stoll(it->str()));

  auto tensor = tvm::ffi::Tensor::FromNDAlloc(AlignedAllocator(), tvm::ffi::Shape(shape), dtype,
                                              DLDevice{kDLCPU, 0});
  if (!file.read(static_cast<char*>(tensor.data_ptr()), tensor.numel() * dtype.bits / 8))
    throw std::runtime_error(path + ": shorter than its header says");
  return tensor;
}

inline void Save(const std::string& path, const tvm::ffi::Tensor& tensor) {
  DLDataType dtype = tensor.dtype();
  if (dtype.code != kDLFloat || dtype.bits != 32 || !tensor.IsContiguous())
    throw std::runtime_error(path + ": only contiguous float32 outputs can be written");

  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (";
  for (int64_t extent : tensor.shape()) header += std::to_string(extent) + ", ";
  header += "), }";
  // Preamble and header together fill a multiple of 64 bytes and end with a newline.
  header.append(63 - (10 + header.size()) % 64, ' ');
  header += '\n';

  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8);
  file.put(static_cast<char>(header.size() % 256)).put(static_cast<char>(header.size() / 256));
  file.write(header.data(), header.size());
  file.write(static_cast<const char*>(tensor.data_ptr()),
             tensor.numel() * sizeof(float));
  if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

}  // namespace npy
