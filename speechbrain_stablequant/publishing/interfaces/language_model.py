"""Language models, of one domain or of many."""

from typing import Any

from speechbrain_stablequant.artifacts.hyperparams import class_name, reference
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.interfaces.base import Interface, Needs
from speechbrain_stablequant.publishing.interfaces.recognition import (
    LANGUAGE_MODELS,
)
from speechbrain_stablequant.publishing.inventory import Recipe

__all__ = ["LANGUAGE_MODEL"]

TOKENIZER = "tokenizer"


def _fits(recipe: Recipe) -> bool:
    name = recipe.module_of(*LANGUAGE_MODELS)
    return name is not None and len(recipe.modules) == 1


def _needs(recipe: Recipe) -> Needs:
    name = recipe.module_of(*LANGUAGE_MODELS)
    if name is None:
        raise PublishError(
            f"LanguageModel needs one of {', '.join(LANGUAGE_MODELS)} among the modules; "
            f"{recipe.definitions.source} has {', '.join(recipe.modules)}."
        )
    if class_name(recipe.definitions.get(TOKENIZER)) == "":
        raise PublishError(
            f"{recipe.definitions.source} has no tokenizer that the pretrainer "
            "loads: without it a language model cannot read text."
        )
    # Ends of a sentence; SpeechBrain's recipes name them so.
    wanted = (TOKENIZER, "bos_index", "eos_index")
    return Needs(
        {key: None for key in wanted if key in recipe.definitions},
        {"lm": recipe.refer(name)},
        {TOKENIZER: reference(TOKENIZER)},
    )


def _score(model: Any, item: dict[str, Any]) -> dict[str, Any]:
    score = model.score_sentences([item["text"]])[0]
    return {"PPL": [score.nats, score.num_tokens]}


LANGUAGE_MODEL = Interface(
    name="LanguageModel",
    module="speechbrain_stablequant.models",
    task="text-generation",
    title="Language model",
    fits=_fits,
    needs=_needs,
    run=_score,
    call='print(model.perplexity(["a sentence of the domain"]))',
    modules=["lm"],
    metrics=["PPL"],
)
