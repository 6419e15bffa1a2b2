"""Models: SpeechBrain's encoders without float weights, multi-domain LMs.

The names here are those that YAML files use:
``!new:speechbrain_stablequant.models.Wav2Vec2``.
"""

from speechbrain_stablequant.core.lazy import lazy_names

# Imported when first used: importing transformers takes seconds.
_HOMES = {
    "DomainConfig": "multi_domain",
    "HuBERT": "huggingface",
    "LanguageModel": "multi_domain",
    "MultiDomainLM": "multi_domain",
    "TransformerLMScorerWithCache": "multi_domain",
    "Wav2Vec2": "huggingface",
    "WavLM": "huggingface",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
