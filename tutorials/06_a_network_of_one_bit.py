"""Tutorial 6: a network with layers of 1, 2, 4 and 8 bits, from its training to one library.

Run it from anywhere: `python tutorials/06_a_network_of_one_bit.py`. It writes into the folder
`tutorial-output`, and takes the digits that tutorial 1 left there.
"""

# %% Define it
# `tvmquant.nn` has layers whose weights, and inputs, are -1 and +1 times a scale, with the
# gradients of the papers. The rest is plain PyTorch: a first convolution and a classifier of real
# numbers.
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

import tvmquant
import tvmquant.nn as tnn
from tvmquant.bit_choice import BitChoice
from tvmquant.demo import RECIPE, write_digits

folder = Path("tutorial-output")
if not (folder / "train.npz").is_file():
    write_digits(folder)
torch.manual_seed(0)


class Block(nn.Module):
    """A binary convolution of signs, a shortcut of real numbers around it, and two slopes."""

    def __init__(self, channels):
        super().__init__()
        self.sign = tnn.RSign(channels)
        self.conv = tnn.BinaryConv2d(channels, channels, 3, padding=1, binarize_input=False)
        self.norm = nn.BatchNorm2d(channels)
        self.slopes = tnn.RPReLU(channels)

    def forward(self, x):
        return self.slopes(self.norm(self.conv(self.sign(x))) + x)


network = nn.Sequential(
    nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32),
    Block(32), Block(32), nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
    tnn.TernaryConv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64),
    Block(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip

# %% Train it
# Real weights are trained; the signs of these compute.
data = tvmquant.open_data(folder / "train.npz", RECIPE, input_shape=(1, 16, 16), batch_size=64)
batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in data]
optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
epochs = 6
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
for _ in range(epochs):
    for index in torch.randperm(len(batches)):
        images, labels = batches[index]
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

# %% Export it
# `freeze` replaces the weights by what they stand for. The file is plain ONNX: comparisons, Where,
# Conv. So signs and weights of a few values are found in other exporters' files too.
onnx_file = folder / "one-bit.onnx"
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # either exporter serves; the older one needs no onnxscript
    torch.onnx.export(
        tnn.freeze(network), (batches[0][0][:2],), onnx_file, dynamo=False,
        input_names=["image"], output_names=["logits"], dynamic_axes={"image": {0: "batch"}},
    )  # fmt: skip
graph = tvmquant.load_onnx(onnx_file)
for layer in tvmquant.quantizable_layers(graph):
    print(f"{layer.id:28} {layer.usual}")

# %% Compile it
#     tvmquant compile one-bit.onnx --data train.npz --preprocess recipe.json -o one-bit
# The model's own choices stay; the others can be chosen, here 4 bits for the one convolution in the
# middle (`tvmquant plan` chooses by sensitivity and measured latency). Between layers everything is
# integers: batch normalization and a sign behind a layer are one threshold for each channel.
calibration = tvmquant.calibrate(graph, data)
middle = next(layer for layer in tvmquant.quantizable_layers(graph) if not layer.position
              and layer.imported is None)  # fmt: skip
choices = {middle.id: BitChoice.parse("w4a8")}
quantized = tvmquant.quantize(graph, calibration, choices=choices)
library = folder / "one-bit"
manifest = tvmquant.build(quantized, target="native", out=library, force=True)
chosen = [layer.choice for layer in manifest.layers if layer.choice]
print(f"{', '.join(chosen)}; {len(manifest.float_audit)} operators in float")

# %% Is it what was trained?
# The library computes what the simulator does, bit for bit; rounding to 8 bits between the layers
# is all that separates it from the network in float.
test = tvmquant.open_data(folder / "test.npz", RECIPE, input_shape=(1, 16, 16))
found = tvmquant.evaluate(tvmquant.load(library), test, reference=graph)
print(f"top-1 {found.top1:.1f} %, of the network in float {found.reference_top1:.1f} %")
image = next(iter(test))[0][:1]
(expected,) = tvmquant.simulate(quantized, image)
assert np.array_equal(tvmquant.load(library)(image), expected)
