import json

import pytest

from tvmquant.cli.output import (
    StageReporter,
    make_table,
    megabytes,
    percent,
    print_json,
    print_tables,
    print_warning,
)


def test_json_is_strict(capsys):
    print_json({"a": [1, None]})
    assert json.loads(capsys.readouterr().out) == {"a": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        print_json({"a": float("nan")})


def test_names_that_look_like_markup_are_printed_as_they_are(capsys):
    print_tables(make_table("a [red]title[/red]", ["layer"], [["[bold]/3/Conv[/bold]"]]))
    text = capsys.readouterr().out
    assert "a [red]title[/red]" in text
    assert "[bold]/3/Conv[/bold]" in text


def test_long_names_are_not_cut(capsys):
    name = "x" * 200
    print_tables(make_table("", ["layer", "time>"], [[name, 1]]))
    text = capsys.readouterr().out
    assert text.count("x") == 200


def test_stages_and_warnings_go_to_stderr(capsys):
    with StageReporter()("work") as progress:
        progress(1, 2)
        progress(2, None)
    print_warning("careful")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("work: ")
    assert "warning: careful" in captured.err


def test_quiet_stages_say_nothing(capsys):
    with StageReporter(quiet=True)("work") as progress:
        progress(1, 2)
    assert capsys.readouterr().err == ""


def test_units():
    assert megabytes(1_500_000) == "1.50 MB"
    assert percent(99.456) == "99.46 %"
    assert megabytes(None) == percent(None) == ""
