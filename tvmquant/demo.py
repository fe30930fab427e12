"""The whole way on a small network: train, export, compile, evaluate and time, in under a minute.

The network classifies the handwritten digits inside scikit-learn (Alpaydin and Kaynak 1998), so
that nothing has to be downloaded. It holds what usual networks hold: normalization, a residual
addition, a depthwise convolution, global pooling and a classifier.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tvmquant.atomic_write import atomic_write
from tvmquant.benchmark import Latency, compare, random_inputs, runner
from tvmquant.compilation import compile_onnx
from tvmquant.data import Preprocess, open_data
from tvmquant.errors import DataError
from tvmquant.evaluation import Evaluation, evaluate, float_network
from tvmquant.progress import Stage, silent_stage

if TYPE_CHECKING:
    import torch

# A fifth of the digits is held out, for evaluation only.
TEST_STEP = 5
EPOCHS = 4
BATCH = 32
PEAK_LEARNING_RATE = 0.01
RECIPE = Preprocess(color="GRAY", scale=1 / 255, mean=(0.3,), std=(0.35,))


@dataclasses.dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes
    ----------
    evaluation : Evaluation
        Of the integer library on the held-out digits, against the float model.
    latencies : dict of str to Latency
        One image at a time: ``library``; ``float``, the float model compiled with tvmquant's
        kernels; and ``float_torch``, the float model in PyTorch.
    bytes : dict of str to int
        Sizes of the two compiled libraries.
    float_operators : int
        Operators of the integer library that stayed float: 0.
    seconds : float
        Of the whole demo.
    """

    evaluation: Evaluation
    latencies: dict[str, Latency]
    bytes: dict[str, int]
    float_operators: int
    seconds: float


def run_demo(
    out: str | os.PathLike[str],
    *,
    epochs: int = EPOCHS,
    repeats: int = 300,
    stage: Stage = silent_stage,
) -> Demo:
    """Train a network, compile it to integers, and compare the library with the float model.

    Parameters
    ----------
    out : path
        Folder for ``digits.onnx``, the data (``train.npz``, ``test.npz``), and the two libraries
        ``int8`` and ``float``. What an earlier demo left there is replaced.
    epochs : int
        Of training.
    repeats : int
        Timed runs of each library.
    stage : callable
        As of `compile_onnx`.

    Raises
    ------
    DataError
        When scikit-learn is not installed, or the folder cannot be made.
    """
    from tvmquant.deploy.build import build
    from tvmquant.deploy.loader import load
    from tvmquant.frontend import load_onnx

    start = time.perf_counter()
    folder = Path(out)
    onnx_file = write_digits(folder, epochs=epochs, stage=stage)
    compiled = compile_onnx(
        onnx_file,
        folder / "train.npz",
        out=folder / "int8",
        preprocess=RECIPE,
        force=True,
        stage=stage,
    )
    graph = load_onnx(onnx_file)
    with stage("build the float model"):
        float_manifest = build(graph, out=folder / "float", force=True)

    library = load(folder / "int8")
    with stage("evaluate") as progress:
        test = open_data(folder / "test.npz", RECIPE)
        evaluation = evaluate(library, test, reference=graph, progress=progress)
    inputs = random_inputs(library.inputs)
    with stage("measure") as progress:
        networks = {
            "library": runner(library, inputs),
            "float": runner(load(folder / "float"), inputs),
            "float_torch": runner(float_network(graph), inputs),
        }
        latencies = compare(networks, repeats=repeats, progress=progress)
    return Demo(
        evaluation=evaluation,
        latencies=latencies,
        bytes={
            "library": compiled.manifest.library["bytes"],
            "float": float_manifest.library["bytes"],
        },
        float_operators=len(compiled.manifest.float_audit),
        seconds=time.perf_counter() - start,
    )


def write_digits(
    out: str | os.PathLike[str], *, epochs: int = EPOCHS, stage: Stage = silent_stage
) -> Path:
    """Train the network and write it with its data: what demo and tutorials start from.

    Parameters
    ----------
    out : path
        Folder for ``digits.onnx``, ``train.npz`` and ``test.npz``, whose images want the recipe
        `RECIPE`.
    epochs : int
    stage : callable
        As of `compile_onnx`; opens ``train``.

    Returns
    -------
    Path
        The ONNX file.

    Raises
    ------
    DataError
        When scikit-learn is not installed, or the folder cannot be made.
    """
    images, labels = load_digits()
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"folder {str(out)!r} of the demo cannot be made: {error.strerror}; choose another "
            "with --out"
        ) from None
    held_out = np.arange(len(images)) % TEST_STEP == 0
    np.savez(folder / "train.npz", images=images[~held_out], labels=labels[~held_out])
    np.savez(folder / "test.npz", images=images[held_out], labels=labels[held_out])
    with stage("train") as progress:
        tensors = np.stack([RECIPE.apply(image, "digit") for image in images[~held_out]])
        network = train(tensors, labels[~held_out], epochs=epochs, progress=progress)
    onnx_file = folder / "digits.onnx"
    export(network, onnx_file, tensors[:2])
    return onnx_file


def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the 1,797 digits as 8-bit images (N, 16, 16), each pixel doubled, and their classes.

    Raises
    ------
    DataError
        When scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise DataError(
            "the demo trains on the digits of scikit-learn, which is not installed; run "
            "pip install 'tvmquant[demo]'"
        ) from None
    digits: Any = load()
    # values 0..16 become 0..240
    images = (digits.images * 15).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    return images, digits.target.astype(np.int64)


def make_network() -> torch.nn.Module:
    """Return the untrained network, (N, 1, 16, 16) -> (N, 10), about 7 M multiply-accumulates."""
    from torch import nn

    class Residual(nn.Module):
        """Two 3x3 convolutions around which the input passes."""

        def __init__(self, channels: int) -> None:
            super().__init__()
            self.branch = nn.Sequential(
                *convolution(channels, channels), *convolution(channels, channels)[:-1]
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.relu(x + self.branch(x))

    def convolution(inputs: int, outputs: int, kernel: int = 3, **options: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options),  # type: ignore[arg-type]
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]

    return nn.Sequential(
        *convolution(1, 32),
        Residual(32),
        *convolution(32, 32, stride=2, groups=32),
        *convolution(32, 64, kernel=1),
        Residual(64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def train(
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    epochs: int = EPOCHS,
    seed: int = 0,
    progress: Any = None,
) -> torch.nn.Module:
    """Return the network trained by AdamW under a one-cycle learning rate, in eval mode.

    Parameters
    ----------
    images : array of float32, shape (N, 1, 16, 16)
    labels : array of int64, shape (N,)
    epochs : int
    seed : int
        Of initialization and order; PyTorch's own generator is left as it was.
    progress : callable (done, total), optional
        Called after each step with the number of steps.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network()
        steps = epochs * -(-len(images) // BATCH)
        optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, PEAK_LEARNING_RATE, total_steps=steps
        )
        done = 0
        for _ in range(epochs):
            order = torch.randperm(len(images))
            for chosen in (order[i : i + BATCH] for i in range(0, len(order), BATCH)):
                logits = network(torch.from_numpy(images)[chosen])
                loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)[chosen])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                done += 1
                if progress is not None:
                    progress(done, steps)
    return network.eval()


def export(network: torch.nn.Module, path: Path, images: NDArray[np.float32]) -> None:
    """Write a network as ONNX with a symbolic batch; the file appears complete or not at all.

    Parameters
    ----------
    network : torch.nn.Module
    path : Path
    images : array of float32
        A batch of at least two, to trace the network with.
    """
    import torch

    with (
        atomic_write(path) as part,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # of PyTorch about its own exporter
        torch.onnx.export(
            network,
            (torch.from_numpy(images),),
            str(part),
            dynamo=False,
            input_names=["image"],
            output_names=["logits"],
            dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        )
