"""The report as one page, made from the files of a ``ptq`` folder."""

from speechbrain_stablequant.report.page.render import render_page, write_page

__all__ = ["render_page", "write_page"]
