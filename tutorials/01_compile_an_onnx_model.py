"""Tutorial 1: from an ONNX file to an integer-only library.

Run it from anywhere: `python tutorials/01_compile_an_onnx_model.py`. It writes into the folder
`tutorial-output`. Every step is also a command; it stands in the comment above it.
"""

# %% A network and its data
# Any ONNX file of a trained convolutional network will do. Here a small one is trained in seconds
# on the digits that scikit-learn holds; `test.npz` holds digits it has not seen.
from pathlib import Path

import tvmquant
from tvmquant.demo import RECIPE, write_digits

folder = Path("tutorial-output")
onnx_file = write_digits(folder)
print(f"{onnx_file}: {onnx_file.stat().st_size / 1e3:.0f} kB of float weights")

# %% Import it
# The graph is a Relax module. Layers keep the names of their ONNX nodes throughout: reports,
# errors and plans speak of them.
graph = tvmquant.load_onnx(onnx_file)
print("input:", graph.inputs, " output:", graph.outputs)

# %% Calibrate and quantize
# Calibration runs some images through the float network and chooses the range of every tensor.
# Labels are not needed. RECIPE says how images become inputs: colour, scale, mean, deviation.
images = tvmquant.open_data(folder / "train.npz", RECIPE, input_shape=(1, 16, 16))
calibration = tvmquant.calibrate(graph, images, limit=256)
quantized = tvmquant.quantize(graph, calibration)

# %% Build
#     tvmquant compile digits.onnx --data train.npz --preprocess recipe.json -o digits-int8
# does all of the above. The folder holds `model.so`, with the weights inside, and `manifest.json`.
library = folder / "digits-int8"
manifest = tvmquant.build(quantized, out=library, force=True)
print(f"{library}: {manifest.library['bytes'] / 1e3:.0f} kB, {len(manifest.layers)} kernels,")
print(f"{len(manifest.float_audit)} operators that stayed float")

# %% Load and run
# Loading needs TVM's runtime and numpy only. Inputs and outputs are float32.
model = tvmquant.load(library)
digits, labels = next(iter(tvmquant.open_data(folder / "test.npz", RECIPE, batch_size=1)))
print("a digit", labels[0], "was taken for a", model(digits).argmax())

# %% Is it accurate?
#     tvmquant eval digits-int8 --data test.npz
# evaluates the library itself, not a simulation of it, beside the float model.
test = tvmquant.open_data(folder / "test.npz", RECIPE)
found = tvmquant.evaluate(model, test, reference=graph)
print(f"top-1 {found.top1:.1f} %, float {found.reference_top1:.1f} %, same answer as float on")
print(f"{found.agreement:.1f} % of the digits, logits at {found.sqnr_db:.1f} dB")
assert found.agreement > 95

# %% Is it exact?
# The arithmetic is defined by a numpy oracle. What the library computes equals it bit for bit, on
# every target: what you evaluated here is what a customer's machine computes.
(expected,) = tvmquant.simulate(quantized, digits)
assert (expected == model(digits)).all()

# %% Is it fast?
#     tvmquant bench digits-int8 --profile
latency = tvmquant.measure(model, [digits])
print(f"{latency.median_ms:.3f} ms for one digit")
for layer, seconds in sorted(model.profile(digits), key=lambda item: -item[1])[:3]:
    print(f"  {seconds * 1e6:6.1f} us  {layer.id}  {layer.kernel}")
