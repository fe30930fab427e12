"""Tutorial 7: weights and activations of 2 bits, trained on the imported graph.

Run it from anywhere: `python tutorials/07_train_at_few_bits.py`. It writes into the folder
`tutorial-output`, and takes the digits that tutorial 1 left there.
"""

# %% A network and what 2 bits do to it
# No network class is needed: the graph of the ONNX file is what is trained. All layers but the
# first and the last get the choice.
import shutil
from pathlib import Path

import numpy as np

import tvmquant
from tvmquant.bit_choice import BitChoice
from tvmquant.demo import RECIPE, write_digits
from tvmquant.layers import uniform_choices

folder = Path("tutorial-output")
if not (folder / "train.npz").is_file():
    write_digits(folder)
graph = tvmquant.load_onnx(folder / "digits.onnx")
choices = uniform_choices(tvmquant.quantizable_layers(graph), BitChoice.parse("w2a2"))
train, test = (
    tvmquant.open_data(folder / f"{name}.npz", RECIPE, input_shape=(1, 16, 16), batch_size=32)
    for name in ("train", "test")
)


def top1(quantized):
    """Return the share of the test digits, in percent, that the integers get right."""
    right = [tvmquant.simulate(quantized, images)[0].argmax(1) == labels for images, labels in test]
    return 100 * float(np.mean(np.concatenate(right)))


calibration = tvmquant.calibrate(graph, train, limit=256)
print(f"w8a8: {top1(tvmquant.quantize(graph, calibration)):.1f} %")
print(f"w2a2: {top1(tvmquant.quantize(graph, calibration, choices=choices)):.1f} %")

# %% Without labels: round the weights anew
# Each weight may be rounded up or down; which is better is found on a few images, layer by layer.
#     tvmquant train digits.onnx --data train.npz --preprocess recipe.json --recipe adaround \
#         --choice w2a2 -o rounded
shutil.rmtree(folder / "rounded", ignore_errors=True)  # or a finished training is taken up again
few = train.subset(step=4, limit=128)
rounded = tvmquant.train(graph, few, "adaround", out=folder / "rounded", choices=choices)

# %% Train
# A recipe is a small YAML file: quantizers, losses, optimizer, schedule, augmentation. `lsq` learns
# the steps of weights and activations; its losses are the labels' and the divergence from what the
# float network answers. After every epoch the exact integers are validated. PyTorch's exporter has
# folded the batch normalization into the convolutions.
#     tvmquant train digits.onnx --data train.npz --validation test.npz --preprocess recipe.json \
#         --choice w2a2 --set batch_norm=folded --set epochs=5 --set optimizer.lr=0.003 -o trained
recipe = tvmquant.Recipe.read(
    "lsq",
    {"batch_norm": "folded", "epochs": 5, "batch_size": 32, "optimizer.lr": 0.003},
)
shutil.rmtree(folder / "trained", ignore_errors=True)
trained = tvmquant.train(
    graph, train, recipe, out=folder / "trained", choices=choices, validation=test,
    on_epoch=lambda epoch, found: print(
        f"epoch {epoch}: loss {found['loss']:.3f}, exact integers {found['top1']:.1f} %"
    ),
)  # fmt: skip

# %% Ship what was trained
# The file is QDQ. Whatever reads it, `tvmquant compile` among others, finds the integers of the
# last forward pass.
for name, result in (("rounded", rounded), ("trained", trained)):
    tvmquant.export_onnx(result.graph, folder / f"{name}.onnx")
    quantized = tvmquant.quantize(tvmquant.load_onnx(folder / f"{name}.onnx"))
    print(f"{name}: {top1(quantized):.1f} %")
tvmquant.build(quantized, out=folder / "digits-w2a2", force=True)
