"""What ``tvmquant targets`` prints."""

import json

from typer.testing import CliRunner

from tvmquant.cli.app import app


def test_lists_presets_and_describes_one() -> None:
    runner = CliRunner()
    listed = runner.invoke(app, ["targets"])
    assert listed.exit_code == 0, listed.output
    for name in ("native", "x86-64-v3", "arm64-v8.0", "arm64-v8.6", "android-arm64-v8.2"):
        assert name in listed.output
    (one,) = json.loads(runner.invoke(app, ["targets", "arm64-v8.2", "--json"]).stdout)
    assert one["instructions"]["w8a8"] == "sdot2"


def test_what_is_no_target_ends_with_a_message() -> None:
    found = CliRunner().invoke(app, ["targets", "cortex-z9"])
    assert found.exit_code == 2
    assert "LLVM knows no processor 'cortex-z9'" in found.output
