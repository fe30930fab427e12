"""One self-contained HTML page about a library: what it is, how fast, and why it is so."""

from tvmquant.report.write import write_report

__all__ = ["write_report"]
