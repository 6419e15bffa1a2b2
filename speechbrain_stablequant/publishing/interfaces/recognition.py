"""Speech recognition: with CTC, or with an attention decoder."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import torch
from speechbrain.utils.metric_stats import ErrorRateStats
from yaml import Node

from speechbrain_stablequant.artifacts.hyperparams import (
    arguments,
    inline,
    is_class,
    new,
    plain,
    reference,
)
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.interfaces.base import (
    Interface,
    Needs,
    audio,
    name_node,
)
from speechbrain_stablequant.publishing.inventory import Recipe

__all__ = ["ENCODER_ASR", "ENCODER_DECODER_ASR"]

SEQUENTIAL = "speechbrain.nnet.containers.LengthsCapableSequential"
TOKENIZERS = ("CTCTextEncoder", "TextEncoder", "SentencePieceProcessor")
CTC_LABELS = "speechbrain.dataio.encoder.CTCTextEncoder"
SENTENCEPIECE = "sentencepiece.SentencePieceProcessor"
SEARCHES = ("test_search", "test_searcher", "beam_searcher", "valid_search")
LANGUAGE_MODELS = ("TransformerLM", "RNNLM", "MultiDomainLM")
_DECODERS = ("dec", "decoder", "seq_lin", "emb")


def _is_ctc(recipe: Recipe) -> bool:
    other = recipe.module(*_DECODERS, "Transformer")
    return recipe.module("ctc_lin") is not None and other is None


def _front(recipe: Recipe) -> dict[str, Node]:
    """Return what comes before the linear layers, in order."""
    encoder = recipe.encoder
    chain = {encoder: recipe.refer(encoder)} if encoder else recipe.features
    for name in ("CNN", "enc"):
        if recipe.module(name):
            chain[name] = recipe.refer(name)
    return chain


def _tokenizer(recipe: Recipe) -> tuple[Node, dict[str, Node]]:
    """Return the tokenizer, and the loadable that it is."""
    for name in ("tokenizer", "label_encoder"):
        node = recipe.object(name)
        if is_class(node, *TOKENIZERS):
            known = recipe.definitions.name_of(node) or name
            file = next(
                (n for n in recipe.files if recipe.object(n) is node), name
            )
            if not is_class(node, "SentencePieceProcessor"):
                recipe.files[file] = _labels(recipe, file)
            return reference(known), {file: reference(known)}
    return _made_in_python(recipe)


def _made_in_python(recipe: Recipe) -> tuple[Node, dict[str, Node]]:
    """Return a tokenizer that the YAML does not have, by the file it left."""
    path, made = recipe.label_file("tokenizer"), CTC_LABELS
    if path is None:
        path, made = recipe.sentencepiece_file(), SENTENCEPIECE
    if path is None:
        raise PublishError(
            f"{recipe.definitions.source} has no tokenizer among the "
            "recoverables or the pretrainer's loadables, and there is no "
            f"label_encoder.txt and no single *.model in "
            f"{recipe.experiment.folder / 'save'}. Copy it to "
            f"{recipe.experiment.ptq / 'checkpoint' / 'tokenizer.ckpt'}, and "
            "give an inference YAML that loads it with --hyperparams."
        )
    recipe.files["tokenizer"] = path
    return new(made), {"tokenizer": reference("tokenizer")}


def _labels(recipe: Recipe, name: str) -> Path:
    """Return the file of a text encoder; an empty one decodes nothing."""
    path = recipe.label_file(name)
    if path is None:
        raise PublishError(
            f"{recipe.experiment.ptq / 'checkpoint' / name}.ckpt has no labels, "
            f"and {recipe.experiment.folder / 'save' / 'label_encoder.txt'} is "
            "not there: without them nothing can be decoded."
        )
    return path


def _blank(recipe: Recipe) -> int:
    """Return the index of the blank label."""
    cost = recipe.definitions.get("ctc_cost")
    if cost is not None and "blank_index" in arguments(cost):
        return int(plain(arguments(cost)["blank_index"]))
    return recipe.number("blank_index", 0)


def _ctc_decoding(recipe: Recipe) -> dict[str, Node]:
    """Return the decoding of the recipe's test: its beam search, or greedy."""
    beam = recipe.definitions.entries("test_beam_search")
    if not beam:
        greedy = "speechbrain.decoders.ctc_greedy_decode"
        return {"decoding_function": name_node(greedy, blank_id=_blank(recipe))}
    # An n-gram model is a file of its own, and not what was trained here.
    kept = {k: v for k, v in beam.items() if k != "kenlm_model_path"}
    search = name_node("speechbrain.decoders.ctc.CTCBeamSearcher")
    return {"decoding_function": search, "test_beam_search": inline(kept)}


def _ctc_needs(recipe: Recipe) -> Needs:
    recipe.known_only(
        [recipe.encoder or "", "CNN", "enc", "ctc_lin", "log_softmax"],
        "EncoderASR",
    )
    chain = {**_front(recipe), "ctc_lin": recipe.refer("ctc_lin")}
    chain["log_softmax"] = (
        reference("log_softmax")
        if "log_softmax" in recipe.definitions
        else new("speechbrain.nnet.activations.Softmax", apply_log=True)
    )
    tokenizer, loadable = _tokenizer(recipe)
    name = _free_name(recipe)
    nodes = {
        name: new(SEQUENTIAL, **chain),
        "tokenizer": tokenizer,
        **_ctc_decoding(recipe),
    }
    return Needs(nodes, {"encoder": reference(name)}, loadable)


def _free_name(recipe: Recipe) -> str:
    """Return a name for the whole encoder that no definition has."""
    return "encoder" if "encoder" not in recipe.definitions else "asr_encoder"


def _search(recipe: Recipe) -> Optional[str]:
    return next((n for n in SEARCHES if n in recipe.definitions), None)


def _has_decoder(recipe: Recipe) -> bool:
    decodes = recipe.module("Transformer", "dec", "decoder")
    return bool(
        decodes and recipe.module("seq_lin") and _search(recipe) is not None
    )


def _decoder_needs(recipe: Recipe) -> Needs:
    if not _has_decoder(recipe):
        raise PublishError(
            "EncoderDecoderASR needs the modules seq_lin and Transformer, or "
            f"dec, and a search ({', '.join(SEARCHES)}); "
            f"{recipe.definitions.source} lacks some. Give an inference YAML "
            "with --hyperparams."
        )
    recipe.known_only(
        [
            *(recipe.encoder or "", "CNN", "enc", "Transformer", "ctc_lin"),
            *(*_DECODERS, "log_softmax", "lm_model", "env_corrupt"),
        ],
        "EncoderDecoderASR",
    )
    tokenizer, loadables = _tokenizer(recipe)
    name, search = _free_name(recipe), _search(recipe)
    nodes = {name: new(SEQUENTIAL, **_front(recipe)), "tokenizer": tokenizer}
    modules = {"encoder": reference(name), "decoder": reference(search)}
    if recipe.module("Transformer"):
        # The interface then gives lengths to the Transformer, for its masks.
        nodes["transformer_beam_search"] = inline(True)
        modules["transformer"] = recipe.refer("Transformer")
    loadables.update(_language_model(recipe, search))
    return Needs(nodes, modules, loadables)


def _language_model(recipe: Recipe, search: str) -> dict[str, Node]:
    """Return the loadable of a language model that the search refers to."""
    name_of = recipe.definitions.name_of
    nodes = [recipe.object(name) for name in recipe.files]
    ours = {name_of(node) for node in nodes if node is not None}
    wanted = recipe.names_within(recipe.definitions[search]) - ours
    return {
        file: reference(name_of(node))
        for file, node in recipe.objects.items()
        if name_of(node) in wanted
        and is_class(node, *LANGUAGE_MODELS)
        and file not in recipe.modules
    }


def _left_out(recipe: Recipe) -> list[str]:
    found = []
    beam = recipe.definitions.value("test_beam_search")
    if isinstance(beam, dict) and beam.get("kenlm_model_path"):
        found.append("the test decoded with an n-gram language model")
    if "rescorer" in recipe.definitions:
        found.append("the test rescored its hypotheses with a language model")
    return found


def _transcribe(model: Any, item: dict[str, Any]) -> dict[str, Any]:
    """Return the text, and its errors if the reference is known."""
    words, _ = model.transcribe_batch(audio(model, item), torch.ones(1))
    text = words[0] if isinstance(words[0], str) else " ".join(words[0])
    found = {"text": text}
    if item.get("text"):
        for name, split in (("WER", False), ("CER", True)):
            stats = ErrorRateStats(split_tokens=split)
            stats.append([item["key"]], [text.split()], [item["text"].split()])
            counts = stats.scores[0]
            kinds = ("insertions", "deletions", "substitutions")
            errors = sum(counts[kind] for kind in kinds)
            found[name] = [errors, counts["num_ref_tokens"]]
    return found


ENCODER_ASR = Interface(
    name="EncoderASR",
    module="speechbrain.inference.ASR",
    task="automatic-speech-recognition",
    title="Speech recognition with CTC",
    fits=_is_ctc,
    needs=_ctc_needs,
    run=_transcribe,
    call='print(model.transcribe_file("{audio}"))',
    modules=["encoder"],
    names=["tokenizer", "decoding_function"],
    metrics=["WER", "CER"],
    left_out=_left_out,
)
ENCODER_DECODER_ASR = replace(
    ENCODER_ASR,
    name="EncoderDecoderASR",
    title="Speech recognition with an attention decoder",
    fits=_has_decoder,
    needs=_decoder_needs,
    modules=["encoder", "decoder"],
    names=["tokenizer"],
)
