"""Tutorial 4: ship a library, and run it from Python and from C++.

Run it from anywhere: `python tutorials/04_deploy_from_python_and_cpp.py`. It writes into the folder
`tutorial-output`. The C++ part needs cmake and a C++ compiler.
"""

# %% A library
# As in tutorial 1. Build for the processor that it will run on: `native` is this one, `haswell` any
# x86-64 with AVX2. The manifest says which instructions a processor must have, and loading checks.
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

import tvmquant
from tvmquant.demo import RECIPE, write_digits

folder = Path("tutorial-output")
onnx_file = folder / "digits.onnx"
if not onnx_file.is_file():
    write_digits(folder)
graph = tvmquant.load_onnx(onnx_file)
images = tvmquant.open_data(folder / "train.npz", RECIPE, input_shape=(1, 16, 16))
quantized = tvmquant.quantize(graph, tvmquant.calibrate(graph, images, limit=256))
library = folder / "shipped"
manifest = tvmquant.build(quantized, target="native", threads=2, out=library, force=True)
print("needs:", manifest.target["triple"], *manifest.target["features"])

# %% Python
# The folder is all that is shipped. `threads` may be changed when it is loaded.
model = tvmquant.load(library, threads=1)
digits, _ = next(iter(tvmquant.open_data(folder / "test.npz", RECIPE, batch_size=1)))
logits = model(digits)

# %% Integers in, integers out
# A camera that delivers bytes need not convert them to float first: the raw entry takes what the
# quantizer at the input would make, and returns the integers before the last dequantizer.
raw = tvmquant.load(library, raw=True)
(input_info,), (output_info,) = raw.inputs, raw.outputs
print(f"input = {input_info.scale:.5f} * (q - {input_info.zero_point}), {input_info.raw_layout}")
steps = np.rint(digits / input_info.scale) + input_info.zero_point
q = np.clip(steps, 0, 255).astype(input_info.raw_dtype).reshape(input_info.raw_shape)
real = (raw(q).astype(np.float32) - output_info.zero_point) * output_info.scales
assert np.array_equal(real, logits)

# %% C++
# `tutorials/cpp` is a program of thirty lines that needs TVM's two runtime libraries (6 MB) only.
source = Path(__file__).resolve().parent / "cpp"
beside = Path(sys.executable).parent
cmake = shutil.which("cmake", path=f"{beside}:{os.environ['PATH']}")
if cmake is None or shutil.which("c++") is None:
    print("no cmake or no C++ compiler here: the C++ part is left out")
else:
    build = folder / "cpp"
    for command in (
        [cmake, "-S", source, "-B", build, f"-DPython_EXECUTABLE={sys.executable}"],
        [cmake, "--build", build],
    ):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    np.save(folder / "x.npy", digits)
    subprocess.run([build / "run", library, "2", folder / "x.npy", folder / "y.npy"], check=True)
    assert np.array_equal(np.load(folder / "y.npy"), logits)
    print("C++ computes the same bits as Python")
