"""The report: a table for the terminal, JSON for programs, and a page.

Also what others say of quantized models: `sources` reads them, `comparison`
puts them side by side.
"""

from speechbrain_stablequant.report.page import render_page, write_page
from speechbrain_stablequant.report.report import Report, TestResult

__all__ = ["Report", "TestResult", "render_page", "write_page"]
