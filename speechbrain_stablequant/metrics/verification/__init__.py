"""Speaker verification: trials, equal error rate, minDCF, their intervals."""

from speechbrain_stablequant.metrics.verification.cosine import CosineBackend
from speechbrain_stablequant.metrics.verification.error_rates import (
    eer,
    min_dcf,
)
from speechbrain_stablequant.metrics.verification.metric import (
    VerificationMetric,
)
from speechbrain_stablequant.metrics.verification.stats import VerificationStats
from speechbrain_stablequant.metrics.verification.trials import Trials

__all__ = [
    "CosineBackend",
    "Trials",
    "VerificationMetric",
    "VerificationStats",
    "eer",
    "min_dcf",
]
