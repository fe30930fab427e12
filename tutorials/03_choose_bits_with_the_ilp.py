"""Tutorial 3: give each layer the bits it needs, within a budget, and read why.

Run it from anywhere: `python tutorials/03_choose_bits_with_the_ilp.py`. It writes into the folder
`tutorial-output`, and takes the network that tutorial 1 left there.
"""

# %% The network
import json
from pathlib import Path

import tvmquant
from tvmquant.demo import RECIPE, write_digits

folder = Path("tutorial-output")
onnx_file = folder / "digits.onnx"
if not onnx_file.is_file():
    write_digits(folder)

# %% Compile within a budget
#     tvmquant compile digits.onnx --data train.npz -o digits-mixed --size 0.7x
# Three things happen before the library is built. The sensitivity of every layer to every bit width
# is estimated (here: by Fisher information, which is quick; the default is the Hessian's trace).
# Whole networks are built and timed on this machine, so that the latency of every layer at every
# width is known where it runs. Then an integer linear program finds the plan of least harm within
# the budget: here, weights of 70 % of the bytes that 8 bits take. `--latency 0.8x` and `--bops`
# work alike, and all can be combined. What layers may take besides w8a8 is w4a8 and w4a4, or what
# `--choices w6a6,w4a8,w2a8` lists: weights and activations of any width from 1 to 8 bits.
wishes = tvmquant.Wishes(size="0.7x", sensitivity="fisher")
library = folder / "digits-mixed"
done = tvmquant.compile_onnx(
    onnx_file, folder / "train.npz", preprocess=RECIPE, out=library, wishes=wishes, force=True
)
chosen, int8 = done.record.chosen, done.record.uniform[0]
print(f"weights: {chosen.size_bytes / int8.size_bytes:.2f} of those of int8")
print(f"latency: {chosen.predicted_ms:.3f} ms predicted, {chosen.measured_ms:.3f} ms measured")

# %% Why each layer got its bits
# Some lines say that narrower bits buy nothing on this machine: then they are not taken.
for layer in done.record.layers:
    print(f"{layer.id:32} {layer.choice}  {layer.reason}")
assert len({layer.choice for layer in done.record.layers}) > 1

# %% Is it still accurate?
test = tvmquant.open_data(folder / "test.npz", RECIPE)
found = tvmquant.evaluate(tvmquant.load(library), test, reference=tvmquant.load_onnx(onnx_file))
print(f"top-1 {found.top1:.1f} %, float {found.reference_top1:.1f} %")
assert found.top1 > found.reference_top1 - 3

# %% Edit the plan by hand
#     tvmquant compile digits.onnx --data train.npz -o digits-edited --plan edited.json
# plan.json is meant to be read and changed. A choice that a layer cannot take, or a plan for
# another model, is refused by the name of the layer.
plan = json.loads((library / "plan.json").read_text())
narrow = next(name for name, layer in plan["layers"].items() if layer["choice"] != "w8a8")
plan["layers"][narrow]["choice"] = "w8a8"
(folder / "edited.json").write_text(json.dumps(plan, indent=1))
try:
    tvmquant.compile_onnx(
        onnx_file, folder / "train.npz", preprocess=RECIPE, out=folder / "digits-edited",
        plan=folder / "edited.json", force=True,
    )  # fmt: skip
    print(f"built with 8-bit weights in {narrow}")
except tvmquant.TVMQuantError as error:
    # the layer reads a narrow activation together with another: both must agree
    print("refused:", error)

# %% The report
#     tvmquant report digits-mixed
# One self-contained page: layers with their widths, sensitivity against latency, the Pareto
# frontier with the chosen plan, predicted against measured, memory, and what stayed float.
print("open", tvmquant.write_report(library))
