from pathlib import Path

import pytest

from benchmarks import instructions
from benchmarks.aarch64 import emulator
from tvmquant.errors import DataError


def test_what_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="'cortex-a7'; expected some of cortex-a72"):
        instructions.run(processors=["cortex-a7"])
    with pytest.raises(DataError, match="has no root/ and packages/: --peers DIR needs"):
        instructions.run(peers=tmp_path)
    monkeypatch.setattr(emulator, "missing", lambda: "")
    with pytest.raises(DataError, match="'1x1'; expected some of 224 3->64 7x7/2"):
        instructions.run(layers=["1x1"])
    monkeypatch.setattr(emulator, "missing", lambda: "no qemu-aarch64: apt install qemu-user")
    with pytest.raises(DataError, match="not emulated: no qemu-aarch64"):
        instructions.run()


def test_kernels_execute_little_but_products() -> None:
    if reason := emulator.missing():
        pytest.skip(f"AArch64 is not emulated: {reason}")
    (row,) = instructions.run(processors=["neoverse-n1"], layers=["7 512->2048 1x1/1"])
    least = 7 * 7 * 512 * 2048 / 16 / 1e6  # sixteen products an instruction
    assert least < float(row["value"] or 0) < 1.5 * least
