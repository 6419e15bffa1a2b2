"""Data preparation: lines of text, from whatever files hold them.

Understands plain text (one sentence a line, ``.txt`` or ``.txt.gz``) and the
transcripts of LibriSpeech (``.trans.txt``: an utterance id, then the words).
"""

import csv
import glob
import gzip
import os
import random

from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


def prepare_text(
    save_folder,
    splits,
    data_folder="",
    held_out=None,
    seed=1986,
    skip_prep=False,
):
    """Writes one CSV file per split, with the columns ID, duration and wrd.

    The duration of a sentence is its number of characters, so that
    SpeechBrain's sorting and dynamic batches work as they do for speech.

    Arguments
    ---------
    save_folder : str
        Where ``<split>.csv`` goes for each split.
    splits : dict
        For each split a list of file patterns, in ``data_folder`` unless
        absolute; ``**`` stands for any number of folders. A pattern with
        ``=<n>`` behind it contributes ``n`` words at most, drawn at random.
    data_folder : str
        Where the files are.
    held_out : dict, optional
        For some splits, a number of sentences that are drawn from ``train``
        and are not in it any more, for corpora without such splits.
    seed : int
        Seed of drawing.
    skip_prep : bool
        If True, nothing is done.

    Raises
    ------
    FileNotFoundError
        If a pattern has no files.
    """
    if skip_prep:
        logger.info("Skipping preparation.")
        return
    os.makedirs(save_folder, exist_ok=True)
    sentences = {
        split: [
            text
            for pattern in patterns
            for text in _draw(data_folder, pattern, seed)
        ]
        for split, patterns in splits.items()
    }
    if held_out:
        _hold_out(sentences, held_out, seed)
    for split, texts in sentences.items():
        path = os.path.join(save_folder, f"{split}.csv")
        with open(path, "w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["ID", "duration", "wrd"])
            for n, text in enumerate(texts):
                writer.writerow([f"{split}-{n:08d}", len(text) + 1, text])
        words = sum(len(text.split()) for text in texts)
        logger.info(f"{path}: {len(texts)} sentences, {words} words")


def _hold_out(sentences, counts, seed):
    """Moves sentences from the training set to other splits."""
    texts = sorted(set(sentences["train"]))
    random.Random(seed).shuffle(texts)
    for split, count in counts.items():
        drawn, texts = texts[:count], texts[count:]
        sentences[split] = [*sentences.get(split, []), *drawn]
    kept = set(texts)
    sentences["train"] = [text for text in sentences["train"] if text in kept]


def _draw(data_folder, pattern, seed):
    """Returns the sentences of a pattern, as many as it asks for."""
    pattern, _, limit = pattern.partition("=")
    found = sorted(
        glob.glob(os.path.join(data_folder, pattern), recursive=True)
    )
    if not found:
        raise FileNotFoundError(
            f"No file matches '{pattern}' in '{data_folder}'. Check "
            "--data_folder and the patterns in the YAML."
        )
    sentences = [text for path in found for text in read_sentences(path)]
    if not limit:
        return sentences
    random.Random(seed).shuffle(sentences)
    words, end = 0, 0
    while end < len(sentences) and words < int(limit):
        words += len(sentences[end].split())
        end += 1
    return sentences[:end]


def read_sentences(path):
    """Returns the sentences of a file.

    Arguments
    ---------
    path : str
        A ``.txt``, ``.txt.gz`` or ``.trans.txt`` file.

    Returns
    -------
    list of str
    """
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as lines:
        sentences = [" ".join(line.split()) for line in lines]
    if path.endswith(".trans.txt"):
        sentences = [text.partition(" ")[2] for text in sentences]
    return [text for text in sentences if text]
