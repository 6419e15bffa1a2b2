"""The ``stablequant`` command."""

from speechbrain_stablequant.cli.main import main
from speechbrain_stablequant.cli.parser import build_parser

__all__ = ["build_parser", "main"]
