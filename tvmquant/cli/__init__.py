"""The command line: every command is a thin layer over the Python API."""

from tvmquant.cli.app import main

__all__ = ["main"]
