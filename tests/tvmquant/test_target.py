"""Targets: every form a user can write, and what follows from one."""

import platform

import pytest
import tvm

from tvmquant import target as targets
from tvmquant.errors import TargetError
from tvmquant.machine import Machine
from tvmquant.target import architecture_of, parse_target, system_of, triple_of

FORMS = {
    "processor": "haswell",
    "option": "-mcpu=haswell",
    "two dashes": "--mcpu=haswell",
    "as TVM writes it": "llvm -mcpu=haswell",
    "spaces": "  llvm   -mcpu=haswell ",
    "JSON": '{"kind": "llvm", "mcpu": "haswell"}',
    "JSON without a kind": '{"mcpu": "haswell"}',
    "dictionary": {"mcpu": "haswell"},
    "target": tvm.target.Target({"kind": "llvm", "mcpu": "haswell"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_one_target(form):
    target = parse_target(FORMS[form])
    assert (target.kind.name, target.attrs["mcpu"]) == ("llvm", "haswell")
    assert targets.supported_features(target) == targets.supported_features(parse_target("haswell"))


def test_options_have_their_types():
    target = parse_target(
        "llvm -mtriple=aarch64-linux-gnu -mcpu=cortex-a76 -mattr=+dotprod,-crc -num-cores=4"
    )
    assert triple_of(target.attrs) == "aarch64-linux-gnu"
    assert list(target.attrs["mattr"]) == ["+dotprod", "-crc"]
    assert target.attrs["num-cores"] == 4


@pytest.mark.parametrize("triple", ["aarch64-linux-gnu", "riscv64-unknown-linux-gnu"])
def test_a_triple_alone(triple):
    assert triple_of(parse_target(triple).attrs) == triple


def test_native_is_this_machine():
    target = parse_target("native")
    assert target.attrs["mcpu"] == str(tvm.target.codegen.llvm_get_system_cpu())
    assert architecture_of(triple_of(target.attrs)) == architecture_of(platform.machine())
    names = {targets.CPUINFO_NAMES[name] for name in Machine.of().required_features}
    assert not targets.host_features() or names <= targets.host_features()


def test_native_leaves_out_what_the_kernel_does_not_report(monkeypatch):
    """A virtual machine can hide features of its processor."""
    monkeypatch.setattr(tvm.target.codegen, "llvm_get_system_cpu", lambda: "haswell", raising=True)
    shown = {targets.CPUINFO_NAMES[n] for n in Machine.of("haswell").required_features}
    monkeypatch.setattr(targets, "host_features", lambda: frozenset(shown - {"fma"}))
    target = parse_target("native")
    assert list(target.attrs["mattr"]) == ["-fma"]
    assert "fma" not in targets.supported_features(target)
    monkeypatch.setattr(targets, "host_features", frozenset)  # a system that does not tell
    assert "mattr" not in parse_target("native").attrs


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "empty"),
        ("{", "not valid JSON"),
        ("llvm -mcpu='", "cannot be split"),
        ("-mcpu", "not of the form -name=value"),
        ("cuda", "kind 'cuda' is not supported"),
        ("haswel", "did you mean haswell"),
        ("-mtriple=s390x-linux-gnu", "architecture 's390x' is not supported"),
        ("-mattr=avx2", "must look like"),
        ("-mattr=+avx9000", "no feature 'avx9000'"),
        ({"mattr": "+avx2"}, "must be a list"),
        ({"mfloat-abi": "medium"}, "expected 'soft' or 'hard'"),
        ({"mcpus": "haswell"}, "mcpus"),
        (3, "not a string"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(spec, message):
    with pytest.raises(TargetError, match=message):
        parse_target(spec)


def test_features_that_code_may_use():
    names = ("x86-64", "haswell", "znver4")
    required = {name: Machine.of(name).required_features for name in names}
    assert required["x86-64"] == []
    assert {"avx2", "fma", "bmi2"} <= set(required["haswell"])
    assert "avx512vnni" not in required["haswell"]
    assert {"avx2", "avx512vnni", "avx512bw"} <= set(required["znver4"])
    assert all(names == sorted(names) for names in required.values())
    without = Machine.of("llvm -mcpu=haswell -mattr=-avx2")
    assert "avx2" not in without.required_features


@pytest.mark.parametrize(
    ("triple", "architecture", "system"),
    [
        ("x86_64-pc-linux-gnu", "x86_64", "linux"),
        ("aarch64-linux-android33", "aarch64", "android"),
        ("arm64-apple-macosx14", "aarch64", "darwin"),
        ("arm64-apple-darwin23", "aarch64", "darwin"),
        ("arm64-apple-ios17", "aarch64", "ios"),
        ("x86_64-pc-windows-msvc", "x86_64", "windows"),
        ("x86_64-w64-mingw32", "x86_64", "windows"),
        ("x86_64-unknown-freebsd", "x86_64", "freebsd"),
        ("armv7l", "arm", ""),
        ("riscv64", "riscv64", ""),
    ],
)
def test_architecture_and_system_of_triples(triple, architecture, system):
    assert (architecture_of(triple), system_of(triple)) == (architecture, system)
