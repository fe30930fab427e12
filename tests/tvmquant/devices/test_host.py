"""What this machine says of itself."""

import os
import platform
import sys

import psutil
import pytest

from tvmquant.devices import host
from tvmquant.devices.host import (
    features_in,
    host_features,
    name_in,
    physical_cores,
    processor_name,
)

X86 = "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t\t: fpu sse avx2\nbugs\t: spectre\n"
ARM = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n"


@pytest.mark.parametrize(
    ("text", "features", "name"),
    [
        (X86, {"fpu", "sse", "avx2"}, "AMD EPYC 7B13"),
        (ARM, {"fp", "asimd", "asimddp"}, ""),
        ("flags\t:\n", set(), ""),
        ("", set(), ""),
    ],
)
def test_what_linux_says_of_a_processor(text, features, name):
    assert (features_in(text), name_in(text)) == (features, name)


def test_a_system_that_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "CPUINFO", tmp_path / "missing")
    assert host_features() == frozenset()
    assert processor_name() == (platform.processor() or platform.machine())


@pytest.mark.parametrize(
    ("physical", "allowed", "cores"),
    [(8, range(16), 8), (8, range(3), 3), (None, range(4), 4)],
)
def test_physical_cores_are_those_that_may_be_used(monkeypatch, physical, allowed, cores):
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed), raising=False)
    assert physical_cores() == cores


def test_processors_count_where_the_system_or_no_package_knows_more(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 4)
    assert physical_cores() == 4
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert physical_cores() == 6
