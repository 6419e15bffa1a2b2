"""The report: one table for people, one JSON for programs."""

from speechbrain_stablequant.report.report import Report, TestResult

__all__ = ["Report", "TestResult"]
