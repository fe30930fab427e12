"""One self-contained HTML page about a library: what it is, how fast, and why it is so."""

from tvmquant.report.write import REPORT_NAME, write_report

__all__ = ["REPORT_NAME", "write_report"]
