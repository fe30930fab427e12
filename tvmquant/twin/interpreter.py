"""The torch module that computes a Relax graph, binding by binding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
import tvm
from torch import Tensor
from tvm import relax

from tvmquant.errors import DataError, QuantizationError
from tvmquant.passes.insert_requantize import InsertRequantize
from tvmquant.twin.blocks import Block, layer_blocks, widest_blocks
from tvmquant.twin.operators import BatchNorm, Operator
from tvmquant.twin.program import Edge, Key, KeyTree, Program, Step, record
from tvmquant.twin.quantizer_module import Quantizer, WeightQuantizer
from tvmquant.twin.write_back import written_back

Mode = Literal["float", "quantized", "exact"]
MODES: tuple[str, ...] = get_args(Mode)
Observe = Callable[[str, Tensor], None]


class Twin(torch.nn.Module):
    """Compute a float (L0) or annotated (L1) graph in torch, with gradients.

    Constants that are trained (weights, biases, the affine part of a normalization) are parameters,
    all others buffers. They are called ``LAYER:weight``, ``LAYER:bias``, else
    ``LAYER:OPERATOR.POSITION``, where LAYER is the name of the ONNX node, with every ``.`` replaced
    by ``_``. The float and the annotated graph of a model name their parameters alike. What each
    ``fake_quant`` does is a module of its own (`quantizers`).

    Parameters
    ----------
    module : tvm.IRModule
        Its function ``main``, straight-line; every extent but the batch known.
    mode : {"float", "quantized", "exact"}
        Whether a ``fake_quant`` or ``dynamic_quant`` passes its input through or rounds it; what
        came with the model (QDQ) is applied in every mode. "exact" computes
        what ships: the integers that `InsertRequantize` makes of the graph, bit for bit.
    observe : callable (edge id, tensor), optional
        Called at every ``fake_quant`` in the first two modes, with its input. Can be set later.

    Attributes
    ----------
    edges : tuple of Edge
        The fake_quants in the order of computation.
    transform : callable (edge id, tensor) -> tensor, optional
        Called at every ``fake_quant`` in the mode "float"; what it returns goes on.
    observe_input : callable (layer, tensor), optional
        Called at every convolution and dense layer with the name of its ONNX node and its input,
        in the first two modes.
    replace_value : dict of int to callable (tensor) -> tensor
        By slots of values (`Block`): called with each of them, and what it returns goes on.
    substitutes : dict of str to tensor
        What is computed with, and written back, instead of constants of these names.

    Raises
    ------
    UnsupportedModelError
        When an operator has no torch function; names the node.
    QuantizationError
        When `mode` is not "float" while an edge has no scale yet.

    Notes
    -----
    A value is dropped as soon as no later operator reads it, so without gradients memory is that
    of the widest point of the network.
    """

    def __init__(
        self, module: tvm.IRModule, *, mode: Mode = "float", observe: Observe | None = None
    ) -> None:
        super().__init__()
        self.observe = observe
        self.observe_input: Observe | None = None
        self.transform: Callable[[str, Tensor], Tensor] | None = None
        self.replace_value: dict[int, Callable[[Tensor], Tensor]] = {}
        self.substitutes: dict[str, Tensor] = {}
        self._module = module
        self._program = record(module)
        for name, tensor in self._program.constants.items():
            if name in self._program.trained:
                self.register_parameter(name, torch.nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        self.edges: tuple[Edge, ...] = tuple(
            s.edge for s in self._program.steps if s.edge is not None
        )
        # by number: the id of an edge may hold what the name of a module may not
        self._quantizers = torch.nn.ModuleList(self._program.quantizers.values())
        self._numbers = {name: i for i, name in enumerate(self._program.quantizers)}
        self._exact: Program | None = None
        results = module["main"].ret_ty
        types = list(results.fields) if isinstance(results, tvm.ir.TupleType) else [results]
        # of each output, whether its first extent is the batch
        self._symbolic = [_has_batch(ty) for ty in types]
        self.mode = mode

    @property
    def mode(self) -> Mode:
        """How fake_quants are computed; can be set.

        Setting "exact" rounds the present parameters, scales and zero points; set it again after
        they have changed. It computes without gradients.

        Raises
        ------
        QuantizationError
            When set to another than "float" while an edge has no scale yet, or to an unknown mode.
        """
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        if mode not in MODES:
            raise QuantizationError(f"twin mode {mode!r}; expected one of {', '.join(MODES)}")
        missing = [edge.id for edge in self.edges if not edge.calibrated]
        if mode != "float" and missing:
            raise QuantizationError(
                f"{len(missing)} of {len(self.edges)} edges have no scale yet, the first is "
                f"{missing[0]!r}; calibrate the graph before running it quantized"
            )
        self._exact = self._integers() if mode == "exact" else None
        self._mode: Mode = mode

    def _integers(self) -> Program:
        rounding = tvm.transform.Sequential([InsertRequantize()])
        return record(rounding(self.write_back()))

    @property
    def live_batch_norm(self) -> bool:
        """Whether normalizations take, and move towards, the statistics of the batch; can be set.

        In the mode "exact" they never do.
        """
        return any(norm.live for norm in self._norms())

    @live_batch_norm.setter
    def live_batch_norm(self, live: bool) -> None:
        for norm in self._norms():
            norm.live = live

    def _norms(self) -> Iterator[BatchNorm]:
        for step in self._program.steps:
            if isinstance(step.function, Operator) and isinstance(
                step.function.function, BatchNorm
            ):
                yield step.function.function

    @property
    def norm_layers(self) -> dict[str, str]:
        """The layer whose result a batch normalization gets, by the name of each of its constants.

        Empty where there is no layer before it.
        """
        found: dict[str, str] = {}
        before: dict[Key, str] = {}
        for step in self._program.steps:
            above = (before[key] for key in step.operands if before.get(key))
            before[step.result] = step.layer or next(above, "")
            if isinstance(step.function, Operator) and isinstance(
                step.function.function, BatchNorm
            ):
                for name in (key for key in step.operands if isinstance(key, str)):
                    found.setdefault(name, before[step.result])
        return found

    @property
    def weights(self) -> dict[str, torch.nn.Parameter]:
        """The weight of each convolution and dense layer, by the name of its ONNX node."""
        return {layer: self.get_parameter(name) for layer, name in self._program.weights.items()}

    def blocks(self, *, widest: bool) -> list[Block]:
        """Return parts of the network that hold each layer once, in order.

        Parameters
        ----------
        widest : bool
            Stretches between points where a single tensor is alive, instead of single layers.
        """
        return widest_blocks(self._program) if widest else layer_blocks(self._program)

    def compute_block(
        self, block: Block, x: Tensor, replaced: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> Tensor:
        """Return the output of a block.

        Parameters
        ----------
        block : Block
            Of this twin, or of another of the same graph.
        x : tensor
            Its input.
        replaced : mapping of str to callable
            What computes ``fake_quants`` instead of their quantizers, by the ids of edges.
        """

        def value_of(step: Step, operands: list[Any]) -> Any:
            if step.edge is not None and step.edge.id in replaced:
                return replaced[step.edge.id](operands[0])
            return self._compute(step, operands)

        found: Tensor = block.compute(x, self.constants, value_of)
        return found

    def value(self, slot: int, *inputs: Tensor) -> Tensor:
        """Return a value within the network, such as the input or the output of a block."""
        self._check(inputs)
        found: Tensor = self._values(self._program, self.constants, inputs, slot)[slot]
        return found

    @property
    def quantizers(self) -> dict[str, torch.nn.Module]:
        """What each ``fake_quant`` does to a tensor, by the id of its edge (`FakeQuantize`)."""
        return {name: self._quantizers[i] for name, i in self._numbers.items()}

    def replace_quantizer(self, edge: str, quantizer: torch.nn.Module) -> None:
        """Let another module compute a ``fake_quant``.

        Parameters
        ----------
        edge : str
            Id of the edge.
        quantizer : Module
            Maps a tensor to one like it; to be written back it has what `Quantizer` lists.

        Raises
        ------
        QuantizationError
            When there is no such edge.
        """
        if edge not in self._numbers:
            raise QuantizationError(
                f"the twin has no edge {edge!r}; expected one of {', '.join(self._numbers)}"
            )
        self._quantizers[self._numbers[edge]] = quantizer

    def write_back(self) -> tvm.IRModule:
        """Return the graph with the present parameters, scales, zero points and ranges.

        Raises
        ------
        QuantizationError
            When a quantizer that was put in has no scale, zero point and range; names the edge.
        """
        present = dict(self.constants)
        for layer, edge in self.weight_edges.items():
            rounds, name = self.quantizers[edge], self._program.weights[layer]
            if isinstance(rounds, WeightQuantizer):
                present[name] = rounds.written(present[name])
        constants = {constant: present[name] for constant, name in self._program.names.items()}
        quantizers: dict[str, Quantizer] = {}
        for name, quantizer in self.quantizers.items():
            if not isinstance(quantizer, Quantizer):
                raise QuantizationError(
                    f"the quantizer of {name!r} is a {type(quantizer).__name__} without the "
                    "attributes scale, zero_point, qmin and qmax, which a graph holds"
                )
            quantizers[name] = quantizer
        return written_back(self._module, constants, quantizers)

    @property
    def weight_edges(self) -> dict[str, str]:
        """The id of the ``fake_quant`` of each layer's weight, by the name of its ONNX node."""
        layers = {name: layer for layer, name in self._program.weights.items()}
        return {
            layers[str(step.operands[0])]: step.edge.id
            for step in self._program.steps
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
        if self._exact is None:
            return self._run(self._program, self.constants, inputs)
        device = inputs[0].device if inputs else "cpu"
        constants = {name: t.to(device) for name, t in self._exact.constants.items()}
        with torch.no_grad():
            return self._run(self._exact, constants, inputs)

    @property
    def constants(self) -> dict[str, Tensor]:
        """What is computed with at present, by name."""
        own = {name: self.get_parameter(name) if name in self._program.trained
               else self.get_buffer(name) for name in self._program.constants}  # fmt: skip
        return own | self.substitutes

    def _run(
        self, program: Program, constants: dict[str, Tensor], inputs: tuple[Tensor, ...]
    ) -> Any:
        values = self._values(program, constants, inputs)
        return _whole(_fetch(program.result, values, constants), self._symbolic, inputs)

    def _values(
        self, program: Program, constants: dict[str, Tensor], inputs: tuple[Tensor, ...],
        last: int | None = None,
    ) -> list[Any]:  # fmt: skip
        """Return the values that are alive in the end, or once the last one is there."""
        values: list[Any] = [None] * program.slots
        values[: len(inputs)] = inputs
        if last is not None and last < len(inputs):
            return values
        for step in program.steps:
            operands = [
                constants[key] if isinstance(key, str) else values[key] for key in step.operands
            ]
            value = self._compute(step, operands)
            change = self.replace_value.get(step.result)
            values[step.result] = value if change is None else change(value)
            del operands, value  # or the list would keep the dead values until the next step
            if step.result == last:
                break
            for slot in step.dead:
                values[slot] = None
        return values

    def _compute(self, step: Step, operands: list[Any]) -> Any:
        if step.layer and self.observe_input is not None:
            self.observe_input(step.layer, operands[0])
        if step.rounds and self._mode == "float":
            return operands[0]
        if step.edge is None:
            return step.function(*operands)
        if self.observe is not None:
            self.observe(step.edge.id, operands[0])
        if self._mode == "float" and not step.edge.fixed:
            return self.transform(step.edge.id, operands[0]) if self.transform else operands[0]
        return self._quantizers[self._numbers[step.edge.id]](operands[0])

    def _check(self, inputs: tuple[Tensor, ...]) -> None:
        if len(inputs) != len(self._program.inputs):
            raise DataError(
                f"{len(inputs)} inputs; the model takes {len(self._program.inputs)}: "
                f"{', '.join(name for name, _ in self._program.inputs)}"
            )
        for (name, extents), tensor in zip(self._program.inputs, inputs, strict=True):
            fits = len(extents) == tensor.ndim and all(
                want in (-1, found) for want, found in zip(extents, tensor.shape, strict=True)
            )
            if not fits:
                wanted = ", ".join("any" if n == -1 else str(n) for n in extents)
                raise DataError(
                    f"input {name!r} has shape {tuple(tensor.shape)}; the model takes ({wanted})"
                )


def _has_batch(ty: Any) -> bool:
    """Whether a type is that of a tensor whose first extent is a symbol."""
    known = isinstance(ty, relax.TensorType) and ty.shape is not None
    extents = list(ty.shape.values) if known else []
    return bool(extents) and isinstance(extents[0], tvm.tirx.Var)


def _whole(result: Any, symbolic: list[bool], inputs: tuple[Tensor, ...]) -> Any:
    """Repeat outputs that are the same for every item, as constants are, along the batch."""
    outputs = result if isinstance(result, tuple) else (result,)
    batch = len(inputs[0]) if inputs and inputs[0].ndim else 1
    whole = tuple(
        x.expand(batch, *x.shape[1:]) if is_batch and len(x) == 1 else x
        for x, is_batch in zip(outputs, symbolic, strict=True)
    )
    return whole if isinstance(result, tuple) else whole[0]


def _fetch(key: KeyTree, values: list[Any], constants: dict[str, Any]) -> Any:
    if isinstance(key, tuple):
        return tuple(_fetch(branch, values, constants) for branch in key)
    return constants[key] if isinstance(key, str) else values[key]
