"""A quantized file, the copies of it that are compared, and what ONNX Runtime makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quantized import engines
from benchmarks.quantized.agreement import Values
from benchmarks.quantized.networks import Network
from benchmarks.quantized.tensors import (
    QuantizedTensor,
    given,
    integer_operators,
    last_tensors,
    layer_by_layer,
    quantized_tensors,
    with_shown,
)
from benchmarks.real_inputs import Feeds

# runs whose every layer is compared
LAYER_RUNS = 2


@dataclasses.dataclass(frozen=True)
class QuantizedFile:
    """A quantized file with the copies of it that are compared.

    Attributes
    ----------
    network : Network
    onnx, shown, layers : Path
        The file; with its last integers as outputs; cut at all of its quantizers.
    last, tensors : sequence of QuantizedTensor
        Its last quantized activations, and all.
    reference : sequence of dict of str to array
        What ONNX Runtime puts out for `shown`.
    layer_reference : sequence of dict of str to array
        The values of all tensors.
    layer_runs : sequence of dict of str to array
        What feeds `layers`.
    outputs : sequence of str
        Of the file.
    operators : set of str
        Nodes that it has in integers.
    """

    network: Network
    onnx: Path
    shown: Path
    layers: Path
    last: Sequence[QuantizedTensor]
    tensors: Sequence[QuantizedTensor]
    reference: Values
    layer_reference: Values
    layer_runs: Sequence[Feeds]
    outputs: Sequence[str]
    operators: set[str]

    @property
    def runs(self) -> list[Feeds]:
        """What feeds the file."""
        return self.network.runs(self.network.evaluation)


def open_file(network: Network, path: Path, scratch: Path) -> QuantizedFile:
    """Let ONNX Runtime evaluate a file as it is written, and write what is compared with that.

    Parameters
    ----------
    network : Network
        That the file computes.
    path : Path
    scratch : Path
        Folder for the copies.
    """
    import onnx

    model = onnx.load(str(path))
    tensors = quantized_tensors(model)
    last = last_tensors(model, tensors)
    every, shown, layers = (scratch / f"{name}.onnx" for name in ("every", "shown", "layers"))
    onnx.save(with_shown(model, tensors), str(every))
    onnx.save(with_shown(model, last), str(shown))
    runs = network.runs(network.evaluation)
    values = engines.run_onnxruntime(every, runs[:LAYER_RUNS])
    onnx.save(layer_by_layer(model, tensors, {**runs[0], **values[0]}), str(layers))
    fed = [
        {**feeds, **{given(tensor): found[tensor.shown] for tensor in tensors}}
        for feeds, found in zip(runs, values, strict=False)
    ]
    reference = engines.run_onnxruntime(shown, runs)
    outputs = [value.name for value in model.graph.output]
    return QuantizedFile(
        network, path, shown, layers, last, tensors, reference, values, fed, outputs,
        integer_operators(model),
    )  # fmt: skip
