"""What a score is, and how far to trust it: sums, intervals, error rates."""

from speechbrain_stablequant.core.lazy import lazy_names

# Names for YAML files; each imports the module that defines it.
_HOMES = {
    "PerplexityStats": "perplexity",
    "Trials": "verification",
    "VerificationStats": "verification",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
