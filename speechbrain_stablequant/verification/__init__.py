"""Speaker verification: trials, equal error rate, minDCF, their intervals."""

from speechbrain_stablequant.verification.rates import eer, min_dcf
from speechbrain_stablequant.verification.stats import VerificationStats

__all__ = ["VerificationStats", "eer", "min_dcf"]
