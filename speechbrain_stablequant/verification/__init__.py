"""Speaker verification: trials, equal error rate, minDCF, their intervals."""

from speechbrain_stablequant.verification.backend import CosineBackend
from speechbrain_stablequant.verification.metric import (
    VerificationMetric,
)
from speechbrain_stablequant.verification.rates import eer, min_dcf
from speechbrain_stablequant.verification.stats import VerificationStats
from speechbrain_stablequant.verification.trials import Trials

__all__ = [
    "CosineBackend",
    "Trials",
    "VerificationMetric",
    "VerificationStats",
    "eer",
    "min_dcf",
]
