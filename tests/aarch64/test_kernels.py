"""Kernels on emulated processors give the oracle's integers."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.aarch64.emulator import Processor
from tests.schedules.conv2d_cases import LAYERS, case
from tvmquant.machine import Machine
from tvmquant.schedules import conv2d, isa

NATIVE = {"cortex-a53": "smlal", "cortex-a76": "sdot2", "max,sve=off": "usmmla"}


@pytest.mark.parametrize(("w_bits", "w_group"), [(8, 0), (4, 0), (4, 32)])
def test_convolutions_are_exact(processor: Processor, w_bits: int, w_group: int) -> None:
    machine = Machine.of(processor.target, 1)
    calls, wanted, used = {}, {}, set()
    for name, layer in LAYERS.items():
        spec = replace(layer, w_bits=w_bits, w_group=w_group).flattened()
        if w_bits < 8 and (spec.run <= isa.CHAIN_GROUP or (w_group and not spec.groupable)):
            continue
        tilings = [conv2d.target_tiling(spec, machine)]
        dots = [dot for dot in conv2d.target_dots(spec, machine) if dot.tensorized]
        if w_bits == 8 and spec.groups == 1:  # each instruction, flat and by channels too
            tilings += [conv2d.default_tiling(spec, (dot,), machine) for dot in dots]
            tilings += [replace(tilings[0], parallel="channels", row_block=spec.out_height,
                                column_block=-(-spec.out_width // tilings[0].column_tile)
                                * tilings[0].column_tile)]  # fmt: skip
        for tiling in dict.fromkeys(tilings):
            if spec.joined and tiling.parallel == "channels":
                continue
            inputs, wanted[name, tiling] = case(spec, tiling)
            calls[name, tiling] = conv2d.kernel(spec, tiling), inputs
            used.add(tiling.dot.name)
    found = processor.run_kernels(calls)
    wrong = [key for key, output in found.items() if not np.array_equal(output, wanted[key])]
    assert not wrong
    assert NATIVE[processor.name] in used
