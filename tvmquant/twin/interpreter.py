"""The torch module that computes a Relax graph, binding by binding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import tvm
from torch import Tensor

from tvmquant.errors import DataError, QuantizationError
from tvmquant.twin.program import Edge, KeyTree, Step, record

Mode = Literal["float", "quantized"]
Observe = Callable[[str, Tensor], None]


class Twin(torch.nn.Module):
    """Compute a float (L0) or annotated (L1) graph in torch, with gradients.

    Constants that are trained (weights, biases, the affine part of a normalization) are parameters,
    all others buffers. They are called ``LAYER:weight``, ``LAYER:bias``, else
    ``LAYER:OPERATOR.POSITION``, where LAYER is the name of the ONNX node, with every ``.`` replaced
    by ``_``. The float and the annotated graph of a model name their parameters alike.

    Parameters
    ----------
    module : tvm.IRModule
        Its function ``main``, straight-line; every extent but the batch known.
    mode : {"float", "quantized"}
        Whether a ``fake_quant`` passes its input through or applies its scale.
    observe : callable (edge id, tensor), optional
        Called at every ``fake_quant`` in both modes, with its input. Can be set later.

    Attributes
    ----------
    edges : tuple of Edge
        The fake_quants in the order of computation.
    transform : callable (edge id, tensor) -> tensor, optional
        Called at every ``fake_quant`` in the mode "float"; what it returns goes on.
    observe_input : callable (layer, tensor), optional
        Called at every convolution and dense layer with the name of its ONNX node and its input.

    Raises
    ------
    UnsupportedModelError
        When an operator has no torch function; names the node.
    QuantizationError
        When `mode` is "quantized" while an edge has no scale yet.

    Notes
    -----
    A value is dropped as soon as no later operator reads it, so without gradients memory is that
    of the widest point of the network.
    """

    def __init__(
        self, module: tvm.IRModule, *, mode: Mode = "float", observe: Observe | None = None
    ) -> None:
        super().__init__()
        program = record(module)
        self.observe = observe
        self.observe_input: Observe | None = None
        self.transform: Callable[[str, Tensor], Tensor] | None = None
        self._inputs = program.inputs
        self._steps = program.steps
        self._slots = program.slots
        self._result = program.result
        self._weights = program.weights
        for name, tensor in program.constants.items():
            if name in program.trained:
                self.register_parameter(name, torch.nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        self.edges: tuple[Edge, ...] = tuple(s.edge for s in self._steps if s.edge is not None)
        self.mode = mode

    @property
    def mode(self) -> Mode:
        """Whether fake_quants pass their input through or quantize it; can be set.

        Raises
        ------
        QuantizationError
            When set to "quantized" while an edge has no scale yet, or to an unknown mode.
        """
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode not in ("float", "quantized"):
            raise QuantizationError(f"twin mode {mode!r}; expected 'float' or 'quantized'")
        missing = [edge.id for edge in self.edges if not edge.calibrated]
        if mode == "quantized" and missing:
            raise QuantizationError(
                f"{len(missing)} of {len(self.edges)} edges have no scale yet, the first is "
                f"{missing[0]!r}; calibrate the graph before running it quantized"
            )
        self._mode: Mode = mode

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """The weight of each convolution and dense layer, by the name of its ONNX node."""
        return {layer: self.get_parameter(name) for layer, name in self._weights.items()}

    def quantizers(self) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return what each ``fake_quant`` does to a tensor, by the id of its edge.

        Raises
        ------
        QuantizationError
            When an edge has no scale yet.
        """
        constants: dict[str, Any] = {**self._parameters, **self._buffers}
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        for step in self._steps:
            if step.edge is None:
                continue
            if not step.edge.calibrated:
                raise QuantizationError(
                    f"tensor {step.edge.id!r} has no scale yet; calibrate first"
                )
            scale_and_others = [constants[str(key)] for key in step.operands[1:]]
            found[step.edge.id] = _after_first(step.function, scale_and_others)
        return found

    @property
    def weight_edges(self) -> dict[str, str]:
        """The id of the ``fake_quant`` of each layer's weight, by the name of its ONNX node."""
        layers = {name: layer for layer, name in self._weights.items()}
        return {
            layers[str(step.operands[0])]: step.edge.id
            for step in self._steps
            if step.edge is not None and step.operands[0] in layers
        }

    def forward(self, *inputs: Tensor) -> Any:
        """Compute the graph.

        Parameters
        ----------
        *inputs : tensors
            In the order of the graph's parameters.

        Returns
        -------
        tensor, or tuple of tensors where the graph has several outputs

        Raises
        ------
        DataError
            When the number or the shape of the inputs is not the graph's.
        """
        self._check(inputs)
        values: list[Any] = [None] * self._slots
        values[: len(inputs)] = inputs
        constants: dict[str, Any] = {**self._parameters, **self._buffers}
        for step in self._steps:
            operands = [
                constants[key] if isinstance(key, str) else values[key] for key in step.operands
            ]
            values[step.result] = self._compute(step, operands)
            del operands  # or the list would keep the dead values until the next step
            for slot in step.dead:
                values[slot] = None
        return _fetch(self._result, values, constants)

    def _compute(self, step: Step, operands: list[Any]) -> Any:
        if step.layer and self.observe_input is not None:
            self.observe_input(step.layer, operands[0])
        if step.edge is not None:
            if self.observe is not None:
                self.observe(step.edge.id, operands[0])
            if self._mode == "float":
                return self.transform(step.edge.id, operands[0]) if self.transform else operands[0]
        return step.function(*operands)

    def _check(self, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs) != len(self._inputs):
            raise DataError(
                f"{len(inputs)} inputs; the model takes {len(self._inputs)}: "
                f"{', '.join(name for name, _ in self._inputs)}"
            )
        for (name, extents), tensor in zip(self._inputs, inputs, strict=True):
            fits = len(extents) == tensor.ndim and all(
                want in (-1, found) for want, found in zip(extents, tensor.shape, strict=True)
            )
            if not fits:
                wanted = ", ".join("any" if n == -1 else str(n) for n in extents)
                raise DataError(
                    f"input {name!r} has shape {tuple(tensor.shape)}; the model takes ({wanted})"
                )


def _after_first(function: Callable[..., Any], others: list[Any]) -> Callable[[Tensor], Tensor]:
    """Return a function of the first operand."""

    def quantize(x: Tensor) -> Tensor:
        result: Tensor = function(x, *others)
        return result

    return quantize


def _fetch(key: KeyTree, values: list[Any], constants: dict[str, Any]) -> Any:
    if isinstance(key, tuple):
        return tuple(_fetch(branch, values, constants) for branch in key)
    return constants[key] if isinstance(key, str) else values[key]
