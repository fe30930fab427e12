import pytest

from tvmquant.errors import TargetError
from tvmquant.target import parse_target
from tvmquant.target_description import describe_target
from tvmquant.target_presets import PRESETS, PROCESSORS


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_targets(name: str) -> None:
    assert parse_target(name).attrs["mtriple"] == PRESETS[name]["mtriple"]
    assert name.removeprefix("android-") in PROCESSORS


@pytest.mark.parametrize(
    ("name", "features", "instructions"),
    [
        ("x86-64-v3", {"avx2"}, ("pmaddubsw256", "pmaddubsw256, 16-bit sums", "vpshufb256")),
        ("x86-64-vnni", {"avx512vnni"}, ("vnni512", "vnni512, less memory", "vpshufb512")),
        ("arm64-v8.0", {"neon"}, ("smlal", "smlal, less memory", "popcount")),
        ("arm64-v8.2", {"dotprod"}, ("sdot2", "sdot2, less memory", "popcount")),
        ("arm64-v8.6", {"i8mm"}, ("usmmla", "usmmla, less memory", "popcount")),
    ],
)
def test_targets_say_what_they_multiply_with(
    name: str, features: set[str], instructions: tuple[str, str, str]
) -> None:
    found = describe_target(name)
    assert features <= set(found.features)
    names = ("w8a8", "w4a8", "w1a1")
    assert tuple(found.instructions[choice] for choice in names) == instructions


def test_what_is_no_target_is_refused() -> None:
    with pytest.raises(
        TargetError, match="no target is called 'arm64-v9'; expected one of x86-64-v3"
    ):
        describe_target("arm64-v9")
