"""The report of a run: one self-contained HTML page, made again at any time from what the run folder holds."""

from nbagent.report.page import build_report

__all__ = ["build_report"]
