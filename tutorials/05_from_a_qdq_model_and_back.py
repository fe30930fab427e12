"""Tutorial 5: from a model that another tool quantized to a library, and back to other runtimes.

Run it from anywhere: `python tutorials/05_from_a_qdq_model_and_back.py`. It writes into the folder
`tutorial-output`, and takes the network that tutorial 1 left there. It needs onnxruntime.
"""

# %% A quantized model
# Here ONNX Runtime quantizes the digits; a file of NNCF, ModelOpt, PyTorch, TensorFlow or Brevitas
# (QONNX) serves as well, and the operators of the older QOperator format too.
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, quantize_static

import tvmquant
from tvmquant.demo import RECIPE, write_digits

folder = Path("tutorial-output")
onnx_file = folder / "digits.onnx"
if not onnx_file.is_file():
    write_digits(folder)
images = tvmquant.open_data(folder / "train.npz", RECIPE, input_shape=(1, 16, 16), batch_size=1)
graph = tvmquant.load_onnx(onnx_file)
(name, _, _), *_ = graph.inputs


class Reader(CalibrationDataReader):
    """Hands a few images to ONNX Runtime."""

    def __init__(self):
        self.items = ({name: image} for image, _ in images.subset(limit=32))

    def get_next(self):
        return next(self.items, None)


qdq_file = folder / "digits.qdq.onnx"
quantize_static(onnx_file, qdq_file, Reader(), per_channel=True)

# %% Compile it
#     tvmquant compile digits.qdq.onnx -o digits-qdq
# No data: weights keep their integers, tensors their scales and zero points. What the file leaves
# without a scale stays float and is listed by `tvmquant inspect`; with --data it is calibrated.
# `--requantize` leaves the file's scales out, and treats it like a float model.
library = folder / "digits-qdq"
done = tvmquant.compile_onnx(qdq_file, out=library, force=True)
print(f"{len(done.manifest.layers)} kernels, {len(done.manifest.float_audit)} operators in float")

# %% Does it compute what the file says?
# ONNX Runtime evaluates the file in float32 between its quantizers; the library computes in
# integers throughout. Both round what the file rounds, so that they differ at ties only.
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
session = onnxruntime.InferenceSession(qdq_file, options)
model = tvmquant.load(library)
test = tvmquant.open_data(folder / "test.npz", RECIPE, batch_size=1).subset(limit=50)
pairs = [(model(image), session.run(None, {name: image})[0]) for image, _ in test]
ours, theirs = (np.concatenate(logits) for logits in zip(*pairs, strict=True))
print(f"{100 * np.mean(np.abs(ours - theirs) < 1e-4):.2f} % of the logits are the same")
assert (ours.argmax(1) == theirs.argmax(1)).mean() > 0.95

# %% And back
#     tvmquant export digits-int8 -o digits-int8.qdq.onnx
# writes any library or plan as QDQ, which ONNX Runtime and OpenVINO run: weights as integers,
# scales and zero points as initialisers, the plan in the metadata. In Python: of the annotated
# graph.
calibration = tvmquant.calibrate(graph, images, limit=64)
annotated = tvmquant.apply_calibration(graph, calibration)
exported = folder / "digits-int8.qdq.onnx"
written = tvmquant.export_onnx(annotated, exported)
print("differs from the library in:", *written.differences, sep="\n  ")

# %% The same integers again
# What was exported comes back as the same network, bit for bit.
quantized = tvmquant.quantize(graph, calibration)
back = tvmquant.quantize(tvmquant.load_onnx(exported))
image = next(iter(test))[0]
assert (tvmquant.simulate(quantized, image)[0] == tvmquant.simulate(back, image)[0]).all()
