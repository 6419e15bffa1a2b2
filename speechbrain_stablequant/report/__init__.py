"""The report: one table for people, one JSON for programs, one page."""

from speechbrain_stablequant.report.page import render_page, write_page
from speechbrain_stablequant.report.report import Report, TestResult

__all__ = ["Report", "TestResult", "render_page", "write_page"]
