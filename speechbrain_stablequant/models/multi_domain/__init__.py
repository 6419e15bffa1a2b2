"""Multi-domain language models: one frozen trunk, small layers per domain."""

from speechbrain_stablequant.models.multi_domain.accounting import (
    AddedParameters,
    added_parameters,
)
from speechbrain_stablequant.models.multi_domain.config import DomainConfig
from speechbrain_stablequant.models.multi_domain.inference import (
    LanguageModel,
    SentenceScore,
)
from speechbrain_stablequant.models.multi_domain.layers import (
    BottleneckAdapter,
    DomainLayers,
)
from speechbrain_stablequant.models.multi_domain.multi_domain_lm import (
    MultiDomainLM,
)
from speechbrain_stablequant.models.multi_domain.scorer import (
    TransformerLMScorerWithCache,
)

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
