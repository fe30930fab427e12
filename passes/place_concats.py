"""Let kernels write their part of a concatenation where it ends up (L3).

Before::

    a = call_tir(conv2d_1x1, (x, ...))                 # (1, 14, 14, 64)
    b = call_tir(conv2d_3x3, (x, ...))                 # (1, 14, 14, 192)
    y = call_tir(concat, (a, b))                       # copies both

After::

    y0 = call_tir(conv2d_1x1_into0of256, (x, ...))     # (1, 14, 14, 256), of which it writes 0..63
    y = call_tir_inplace(conv2d_3x3_into64of256, (x, ..., y0))

Requires that the concatenation is along the last axis. What is also read elsewhere is copied, as
before; where that is the larger part, and where kernels do more with their result than store it,
nothing changes. The functions differ from the kernels' own in the strides of their result only.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx

from tvmquant.ir.rewriter import DataflowRewriter, bindings_of, count_uses
from tvmquant.ir.tensor_types import dtype_of, static_shape
from tvmquant.machine import Machine
from tvmquant.schedules import structural
from tvmquant.schedules.kernel_facts import NAME, name_of, operation_of, with_facts

CALL_TIR = "relax.call_tir"
RESHAPE = "relax.reshape"
CONCAT = "concat"
# the nodes of a function that name a buffer and where in it
STORE, LOAD, REGION = tirx.BufferStore, tvm.ir.TensorLoad, tvm.ir.TensorRegion


class _Part:
    """One input of a concatenation.

    Attributes
    ----------
    call : Call or None
        The kernel's call that can write it in place.
    value : Expr
        The input itself.
    shape : tuple of int
        Of the kernel's result: another view of the input's.
    offset : int
        Of its first channel in the output.
    """

    def __init__(
        self, call: relax.Call | None, value: relax.Expr, shape: tuple[int, ...], offset: int
    ) -> None:
        self.call = call
        self.value = value
        self.shape = shape
        self.offset = offset


class _Placer(DataflowRewriter):
    def __init__(self, module: tvm.IRModule, machine: Machine) -> None:
        super().__init__(module)
        self.machine = machine
        self.uses = count_uses(self.function)
        self.producer = dict(bindings_of(self.function))
        # the concatenation and the part that a kernel's variable is placed in
        self.placed: dict[relax.Var, tuple[relax.Var, _Part]] = {}
        # other views of such a variable, on the way to the concatenation
        self.views: dict[relax.Var, relax.Var] = {}
        self.parts: dict[relax.Var, list[_Part]] = {}
        self.begun: dict[relax.Var, relax.Expr] = {}
        for var, value in self.producer.items():
            if self._is_concat(value):
                self._plan(var, value)

    def _is_concat(self, value: relax.Expr) -> bool:
        return (
            isinstance(value, relax.Call)
            and value.op.name == CALL_TIR
            and operation_of(self.module[value.args[0]]) == CONCAT
        )

    def _plan(self, var: relax.Var, call: relax.Call) -> None:
        """Decide which inputs are written in place."""
        total, inputs = static_shape(var), list(call.args[1].fields)
        shapes = [static_shape(x) for x in inputs]
        if any(shape[:-1] != total[:-1] for shape in shapes) or math.prod(total[:-1]) == 1:
            return
        parts, offset, found = [], 0, {}
        for x, shape in zip(inputs, shapes, strict=True):
            source = self._kernel_of(x)
            if source is not None and source not in self.placed and source not in found:
                part = _Part(self.producer[source], x, static_shape(source), offset)
                found[source] = part
            else:
                part = _Part(None, x, shape, offset)
            parts.append(part)
            offset += shape[-1]
        inside = sum(math.prod(part.shape) for part in parts if part.call is not None)
        if 2 * inside < math.prod(total):
            return
        self.parts[var] = parts
        self.placed |= {source: (var, part) for source, part in found.items()}
        for part in parts:
            view = part.value
            while part.call is not None and view not in self.placed:
                self.views[view] = var
                view = self.producer[view].args[0]

    def _kernel_of(self, value: relax.Expr) -> relax.Var | None:
        """Return the variable of the kernel's call that only this concatenation reads."""
        while isinstance(value, relax.Var) and self.uses[value] == 1:
            call = self.producer.get(value)
            if not isinstance(call, relax.Call):
                return None
            if call.op.name == RESHAPE:
                if static_shape(call.args[0])[-1] != static_shape(value)[-1]:
                    return None
                value = call.args[0]
                continue
            if call.op.name != CALL_TIR or self._is_concat(call):
                return None
            kernel = self.module[call.args[0]]
            if operation_of(kernel) == "quantize":
                return None  # the border, which `ExposeIntegers` takes off
            return value if _only_stores(kernel) else None
        return None

    def visit_binding(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if var in self.placed:
            concat, part = self.placed[var]
            args = [self.lookup(a) for a in value.args[1].fields]
            kernel = self.module[value.args[0]]
            return self._write(concat, part, kernel, args, value)
        if var in self.views:
            return self.begun[self.views[var]]
        if var not in self.parts:
            return None
        for part in self.parts[var]:
            if part.call is None:
                zeros, ones = (0,) * len(part.shape), (1,) * len(part.shape)
                spec = structural.SliceSpec(part.shape, zeros, ones, part.shape, dtype_of(var))
                kernel = structural.kernel(spec, self.machine)
                kernel = with_facts(kernel, f"{CONCAT}_{spec.dtype}", CONCAT)
                self._write(var, part, kernel, [self.lookup(part.value)], value)
        result = self.begun[var]
        return self._viewed(result, static_shape(var))

    def _viewed(self, value: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        if static_shape(value) == tuple(shape):
            return value
        return self.emit(relax.op.reshape(value, shape))

    def _write(
        self, concat: relax.Var, part: _Part, kernel: tirx.PrimFunc, args: list[relax.Expr],
        node: relax.Call,
    ) -> relax.Expr:  # fmt: skip
        """Emit the call that writes a part; the result holds all parts that are written so far."""
        channels = static_shape(concat)[-1]
        shape = (*part.shape[:-1], channels)
        name = f"{name_of(kernel)}_into{part.offset}of{channels}"
        placed = place(kernel, shape, part.offset).with_attr(NAME, name)
        function = self.builder.add_func(placed.without_attr("global_symbol"), name)
        out = relax.TensorType(shape, dtype_of(concat))
        if concat in self.begun:
            args = [*args, self._viewed(self.begun[concat], shape)]
            call = relax.op.call_tir_inplace(function, args, len(args) - 1, out)
        else:
            call = relax.op.call_tir(function, args, out_ty=out)
        named = relax.Call(call.op, call.args, call.attrs, call.ty_args, node.span)
        self.begun[concat] = self.emit(named, "lv")
        return self.begun[concat]


def _buffer(node: Any) -> Any:
    return node.buffer if isinstance(node, STORE) else node.source


def _only_stores(kernel: tirx.PrimFunc) -> bool:
    """Whether a kernel reaches its result by storing and loading elements alone."""
    result = kernel.params[-1]
    elements = everything = 0

    def element(node: Any) -> None:
        nonlocal elements
        elements += _buffer(node).same_as(result)

    def anything(var: Any) -> None:
        nonlocal everything
        everything += var.same_as(result)

    visits = [((STORE, LOAD, REGION), element), (tvm.ir.Var, anything)]
    tvm_ffi.structural_walk(kernel.body, visits, order="pre")
    return everything == elements


def place(kernel: tirx.PrimFunc, shape: tuple[int, ...], offset: int) -> tirx.PrimFunc:
    """Return the kernel with a result of another number of channels, of which it writes some.

    Parameters
    ----------
    kernel : PrimFunc
        Scheduled; its last parameter is its result, which it only stores and loads.
    shape : tuple of int
        Of the new result: equal but for the last extent.
    offset : int
        Where the kernel's first channel comes to lie.
    """
    *operands, old = kernel.params
    new = tirx.decl_buffer(shape, old.dtype, old.name, layout=None)

    def of_old(node: Any) -> bool:
        return bool(_buffer(node).same_as(old))

    def shifted(indices: Any) -> list[Any]:
        return [*indices[:-1], indices[-1] + offset]

    def store(node: Any) -> Any:
        return tirx.BufferStore(new, node.value, shifted(node.indices)) if of_old(node) else node

    def load(node: Any) -> Any:
        return tirx.BufferLoad(new, shifted(node.indices)) if of_old(node) else node

    def region(node: Any) -> Any:
        if not of_old(node):
            return node
        *outer, last = node.region
        moved = tvm.ir.Range.from_min_extent(last.min + offset, last.extent)
        return tirx.BufferRegion(new, [*outer, moved])

    moves = [(STORE, store), (LOAD, load), (REGION, region)]
    body = tvm_ffi.structural_map(kernel.body, moves, order="post")
    placed = tirx.PrimFunc([*operands, new], body, kernel.ret_type, kernel.attrs)
    return s_tir.renew_defs(placed)  # two functions must not share variables


@tvm.ir.transform.module_pass(opt_level=0, name="PlaceConcats")
class PlaceConcats:
    """Write the inputs of concatenations in place (see the module's description).

    Parameters
    ----------
    machine : Machine
        Of the kernels that copy what cannot be written in place.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def transform_module(
        self, module: tvm.IRModule, _ctx: tvm.transform.PassContext
    ) -> tvm.IRModule:
        """Return the module with fewer copies."""
        return _Placer(module, self.machine).rewrite()
