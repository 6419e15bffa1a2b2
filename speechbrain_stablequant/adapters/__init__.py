"""Language models for many domains: one trunk, small layers for each."""

from speechbrain_stablequant.adapters.accounting import (
    AddedParameters,
    added_parameters,
)
from speechbrain_stablequant.adapters.config import DomainConfig
from speechbrain_stablequant.adapters.inference import (
    LanguageModel,
    SentenceScore,
)
from speechbrain_stablequant.adapters.layers import (
    BottleneckAdapter,
    DomainLayers,
)
from speechbrain_stablequant.adapters.multi_domain import MultiDomainLM
from speechbrain_stablequant.adapters.scorer import TransformerLMScorerWithCache

__all__ = [
    "AddedParameters",
    "BottleneckAdapter",
    "DomainConfig",
    "DomainLayers",
    "LanguageModel",
    "MultiDomainLM",
    "SentenceScore",
    "TransformerLMScorerWithCache",
    "added_parameters",
]
