// Calls kernels that TVM compiled, on operands in files: what emulated processors run in tests.
//
//   kernels LIBRARY CALLS REPEATS
//
// CALLS is a file. A line `call FUNCTION` is followed by one `TYPE BITS FILE EXTENT...` for each
// operand, TYPE being DLPack's code; the last is the output, whose file is written.
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

struct Operand {
  std::string file;
  DLDataType type;
  std::vector<int64_t> shape, strides;
  size_t bytes;
  void* data;
};

struct Call {
  std::string function;
  std::vector<Operand> operands;
};

static Operand Read(std::istringstream& words) {
  Operand found;
  int code, bits;
  words >> code >> bits >> found.file;
  found.type = {static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
  found.bytes = bits / 8;
  for (int64_t extent; words >> extent;) {
    found.shape.push_back(extent);
    found.bytes *= extent;
  }
  found.strides.assign(found.shape.size(), 1);
  for (size_t i = found.shape.size(); i > 1; --i)
    found.strides[i - 2] = found.strides[i - 1] * found.shape[i - 1];
  found.data = std::aligned_alloc(64, (found.bytes + 63) / 64 * 64 + 64);
  return found;
}

int main(int argc, char** argv) try {
  if (argc != 4) return 2;
  std::ifstream lines(argv[2]);
  std::vector<Call> calls;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    if (line.rfind("call ", 0) == 0) {
      calls.push_back({line.substr(5), {}});
      continue;
    }
    calls.back().operands.push_back(Read(words));
  }
  ffi::Module library = ffi::Module::LoadFromFile(argv[1]);
  for (Call& call : calls) {
    ffi::Function function = library->GetFunction(call.function).value();
    std::vector<DLTensor> tensors;
    for (Operand& operand : call.operands) {
      std::ifstream file(operand.file, std::ios::binary);
      file.read(static_cast<char*>(operand.data), operand.bytes);
      tensors.push_back({operand.data, {kDLCPU, 0}, static_cast<int32_t>(operand.shape.size()),
                         operand.type, operand.shape.data(), operand.strides.data(), 0});
    }
    std::vector<ffi::AnyView> arguments;
    for (DLTensor& tensor : tensors) arguments.push_back(ffi::AnyView(&tensor));
    ffi::Any result;
    for (int i = 0; i < std::atoi(argv[3]); ++i)
      function.CallPacked(arguments.data(), static_cast<int32_t>(arguments.size()), &result);
    const Operand& output = call.operands.back();
    std::ofstream(output.file, std::ios::binary)
        .write(static_cast<const char*>(output.data), output.bytes);
  }
  return 0;
} catch (const ffi::Error& error) {
  std::fprintf(stderr, "error: %s: %s\n", error.kind().c_str(), error.message().c_str());
  return 2;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
