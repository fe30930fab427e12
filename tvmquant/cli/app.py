"""The typer application: its commands, the global options, and how errors end a run.

Exit codes: 0 done, 2 an error the user can act upon (one message, no traceback), 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tvmquant.cli.bench import bench
from tvmquant.cli.compile import compile_model
from tvmquant.cli.demo import demo
from tvmquant.cli.eval import evaluate_library
from tvmquant.cli.export import export_network
from tvmquant.cli.inspect import inspect
from tvmquant.cli.output import print_error
from tvmquant.cli.plan import plan_model
from tvmquant.cli.report import report
from tvmquant.cli.run import run
from tvmquant.cli.targets import list_targets
from tvmquant.cli.train import train_model
from tvmquant.cli.tune import tune_model
from tvmquant.errors import TVMQuantError

USER_ERROR = 2
INTERRUPTED = 130


class _Group(TyperGroup):
    """Turn the errors of tvmquant and of the file system into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise
        except (TVMQuantError, OSError) as error:
            if ctx.params["debug"]:
                raise
            print_error(str(error))
            raise typer.Exit(USER_ERROR) from None


app = typer.Typer(
    name="tvmquant",
    cls=_Group,
    help="Compile ONNX models into integer-only libraries, and evaluate, time and run those.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("compile")(compile_model)
app.command("eval")(evaluate_library)
app.command("bench")(bench)
app.command("inspect")(inspect)
app.command("report")(report)
app.command("run")(run)
app.command("plan")(plan_model)
app.command("tune")(tune_model)
app.command("targets")(list_targets)
app.command("train")(train_model)
app.command("export")(export_network)
app.command("demo")(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"tvmquant {version('tvmquant')}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option("--debug", envvar="TVMQUANT_DEBUG", help="Show the traceback of an error."),
    ] = False,
) -> None:
    """Hold the options that come before the name of a command."""


def main() -> None:
    """Run the command line; the entry point of the script ``tvmquant``."""
    # PyTorch's and TVM's threads take turns. By default OpenMP's keep spinning when they are done:
    # evaluating a small network on two busy cores took 24 s that way, 0.7 s when they sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # a name that the terminal's encoding lacks is no reason to end without a result
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    app()
