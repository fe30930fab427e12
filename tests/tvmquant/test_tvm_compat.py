"""TVMScript parses as before, faster, and nobody else notices."""

# ruff: noqa: N805, N812 (names as TVMScript prescribes them)

import inspect

import tvm
from tvm.script import ir as I
from tvm.script import relax as R
from tvm.script import tirx as T

from tvmquant.tvm_compat import speed_up_parser


def define_module():
    @I.ir_module
    class Module:
        @T.prim_func(s_tir=True)
        def increment(a: T.Buffer((4,), "float32")):
            for i in range(4):
                with T.sblock("increment"):
                    v = T.axis.spatial(4, i)
                    a[v] = a[v] + 1.0

        @R.function
        def main(x: R.Tensor(("N", 3), "float32")):
            with R.dataflow():
                y = R.add(x, x)
                R.output(y)
            return y

    return Module


def define_function(extent):
    @T.prim_func(s_tir=True)
    def fill(a: T.Buffer((extent,), "float32")):
        for i in range(extent):
            with T.sblock("fill"):
                v = T.axis.spatial(extent, i)
                a[v] = 1.0

    return fill


def test_modules_and_functions_parse_alike():
    before = define_module(), define_function(5)
    speed_up_parser()
    speed_up_parser()
    for found, expected in zip((define_module(), define_function(5)), before, strict=True):
        tvm.ir.assert_structural_equal(found, expected)


def test_inspect_itself_is_not_changed():
    speed_up_parser()
    assert inspect.stack()[0].code_context is not None
    assert tvm.script.parser.ir.entry.inspect.isclass(int)
    assert tvm.script.parser.ir.entry.inspect is not inspect


def test_no_source_is_read_but_one_line():
    speed_up_parser()
    frames = tvm.script.parser.ir.entry.inspect.stack()
    assert frames[0].function == "test_no_source_is_read_but_one_line"
    assert [index for index, frame in enumerate(frames) if frame.code_context is not None] == [2]
