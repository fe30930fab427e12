// Runs a network that tvmquant built, with nothing but TVM's runtime (libtvm_runtime, libtvm_ffi).
//
//   run BUILT_DIRECTORY THREADS INPUT.npy OUTPUT.npy [OUTPUT.npy ...]
//
// One output file for each output of the network, in the order of manifest.json. Unlike
// tvmquant.load it does not check that the library is unchanged and fits this processor.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdio>

#include "npy.h"

namespace ffi = tvm::ffi;

int main(int argc, char** argv) try {
  if (argc < 5 || std::atoi(argv[2]) < 1) {
    std::fprintf(stderr, "usage: %s BUILT_DIRECTORY THREADS INPUT.npy OUTPUT.npy...\n", argv[0]);
    return 2;
  }
  // The runtime reads this once, when the first parallel kernel starts its thread pool.
  setenv("TVM_NUM_THREADS", argv[2], /*overwrite=*/1);

  ffi::Module library = ffi::Module::LoadFromFile(std::string(argv[1]) + "/model.so");
  ffi::Function load = library->GetFunction("vm_load_executable").value();
  ffi::Module network = load().cast<ffi::Module>();
  constexpr int kPooledAllocator = 2;  // keeps buffers between runs instead of returning them
  network->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, kPooledAllocator);

  ffi::Any result = network->GetFunction("main").value()(npy::Load(argv[3]));
  auto single = result.try_cast<ffi::Tensor>();
  auto outputs = single ? ffi::Array<ffi::Tensor>{*single} : result.cast<ffi::Array<ffi::Tensor>>();
  if (outputs.size() != static_cast<size_t>(argc - 4))
    throw std::runtime_error("the network has " + std::to_string(outputs.size()) +
                             " outputs; name one .npy file for each");
  for (size_t i = 0; i < outputs.size(); ++i) npy::Save(argv[4 + i], outputs[i]);
  return 0;
} catch (const ffi::Error& error) {
  std::fprintf(stderr, "error: %s: %s\n", error.kind().c_str(), error.message().c_str());
  return 2;
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 2;
}
