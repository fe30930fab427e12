"""Tutorial 2: measure what every layer costs, and let the tuner find faster kernels.

Run it from anywhere: `python tutorials/02_autotune_a_latency_table.py`. It writes into the folder
`tutorial-output`, and takes the network that tutorial 1 left there.
"""

# %% The network
from pathlib import Path

import tvmquant
from tvmquant.bit_choice import BitChoice
from tvmquant.demo import RECIPE, write_digits
from tvmquant.tuning.tune import tune

folder = Path("tutorial-output")
onnx_file = folder / "digits.onnx"
if not onnx_file.is_file():
    write_digits(folder)
graph = tvmquant.load_onnx(onnx_file)

# %% Tune
#     tvmquant tune digits.onnx -o table --choices w8a8,w4a8,w4a4 --time 10m
# Kernels come with an analytic tiling that needs no measuring. The tuner measures that one first,
# then others that a cost model, trained on what was measured so far, finds promising; each is
# compiled and timed in a process of its own. Every trial is kept in the folder as soon as it is
# measured: stop it at any time, and go on later. Here it gets a few trials only.
choices = [BitChoice.parse(text) for text in ("w8a8", "w4a8", "w4a4")]
tuned = tune(graph, folder / "table", choices=choices, trials=24)
print(f"{tuned.tuning.trials} trials of {tuned.workloads} kernels; {tuned.table_path}")

# %% The latency table
# One line for each layer and choice. Beside the JSON lies the same as CSV, for pandas.
for entry in tuned.table.entries:
    print(
        f"{entry.layer:32} {entry.choice}  default {entry.default_ms * 1e3:7.1f} us"
        f"  tuned {entry.median_ms * 1e3:7.1f} us  ({entry.gain:.2f}x)"
    )
assert all(entry.gain >= 1 for entry in tuned.table.entries)

# %% Use it
#     tvmquant compile digits.onnx ... --table table
# A build takes the fastest measured tiling of each kernel where it beats the default by more than
# 3 %, and else the default. The integers do not depend on it.
images = tvmquant.open_data(folder / "train.npz", RECIPE, input_shape=(1, 16, 16))
quantized = tvmquant.quantize(graph, tvmquant.calibrate(graph, images, limit=256))
tvmquant.build(quantized, out=folder / "untuned", force=True)
tvmquant.build(quantized, out=folder / "tuned", tilings=tuned.database.tilings(), force=True)

digits, _ = next(iter(tvmquant.open_data(folder / "test.npz", RECIPE, batch_size=1)))
libraries = {name: tvmquant.load(folder / name) for name in ("untuned", "tuned")}
assert (libraries["tuned"](digits) == libraries["untuned"](digits)).all()
for name, latency in tvmquant.compare(
    {name: model.bind(digits) for name, model in libraries.items()}
).items():
    print(f"{name}: {latency.median_ms:.3f} ms")

# %% On another device
# A farm of boards tunes in parallel through TVM's RPC tracker:
#     python -m tvm.exec.rpc_tracker --host 127.0.0.1 --port 9190
#     python -m tvm.exec.rpc_server --tracker 127.0.0.1:9190 --key board --host 127.0.0.1
#     tvmquant tune digits.onnx -o table --rpc 127.0.0.1:9190 --rpc-key board --threads 4
# `tvmquant plan`, `compile --latency` and `bench` take the same options: networks are built here
# and timed there, by a process that has TVM's runtime alone. In Python: rpc= and rpc_key=.
# These servers run whatever they are sent, without a password: keep them on the loopback interface
# or in a network that you trust.
