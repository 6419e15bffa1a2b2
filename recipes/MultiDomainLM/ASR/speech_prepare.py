"""Data preparation: sentences of text files, spoken by espeak-ng.

The training sentences come from general text, the dev and test sentences from
the domain that the language models are compared on, so that the recogniser
does not learn the domain by itself. The voices of the splits are different.

The package ``espeakng-loader`` brings the synthesiser and its voices:
``pip install espeakng-loader``.
"""

import csv
import os
import random

import numpy as np
import soundfile as sf
from digit_strings_prepare import (
    SAMPLE_RATE,
    VARIANTS,
    Synthesizer,
    add_white_noise,
)
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


def prepare_speech(
    save_folder,
    audio_folder,
    data_folder,
    texts,
    n_sentences,
    n_words,
    exclude=(),
    voice_ratio=(80, 8, 12),
    snr=(15, 35),
    seed=1986,
    skip_prep=False,
):
    """Synthesises sentences and writes one CSV file per split.

    Arguments
    ---------
    save_folder : str
        Where ``<split>.csv`` goes.
    audio_folder : str
        Where the recordings go.
    data_folder : str
        Where the text files are, one upper-case sentence a line.
    texts : dict
        Lists of text files by split: train, dev, test.
    n_sentences : dict
        How many different sentences to speak, by split.
    n_words : dict
        Words of the shortest and of the longest sentence, by split.
    exclude : list of str
        Text files of which no sentence gets into dev or test: what the
        language models are trained on.
    voice_ratio : tuple of int
        Share of the voices for train, dev and test.
    snr : tuple of float
        White noise is added at a level between these, in dB.
    seed : int
        The same seed gives the same sentences and voices.
    skip_prep : bool
        If True, nothing is done.
    """
    splits = ("train", "dev", "test")
    csv_files = [os.path.join(save_folder, f"{name}.csv") for name in splits]
    if skip_prep or all(os.path.isfile(path) for path in csv_files):
        logger.info("Skipping preparation.")
        return
    rng = random.Random(seed)
    voices = rng.sample(VARIANTS, len(VARIANTS))
    ends = np.cumsum(voice_ratio) * len(voices) // sum(voice_ratio)
    starts = [0, *ends[:-1]]
    speak, used = Synthesizer(), set()
    for split, path, start, end in zip(splits, csv_files, starts, ends):
        if start == end:
            raise ValueError(
                f"voice_ratio={tuple(voice_ratio)} leaves no voice for "
                f"{split}: raise its share."
            )
        sentences = draw_sentences(
            read_sentences(data_folder, texts[split]),
            n_sentences[split],
            n_words[split],
            used,
            rng,
            split,
        )
        used.update(sentences)
        if split == "train":
            used.update(read_sentences(data_folder, exclude))
        folder = os.path.abspath(os.path.join(audio_folder, split))
        os.makedirs(folder, exist_ok=True)
        rows = []
        for n, text in enumerate(sentences):
            voice = rng.choice(voices[start:end])
            audio = speak.random(text.split(), voice, rng)
            audio = add_white_noise(audio, rng.uniform(*snr), rng)
            wav = os.path.join(folder, f"{split}-{n:05d}.wav")
            sf.write(wav, audio, SAMPLE_RATE, subtype="PCM_16")
            duration = len(audio) / SAMPLE_RATE
            rows.append([f"{split}-{n:05d}", duration, wav, voice, text])
        write_csv(path, rows)


def read_sentences(data_folder, files):
    """Returns the different sentences of some files.

    Arguments
    ---------
    data_folder : str
        Where the files are.
    files : list of str
        Their names.

    Returns
    -------
    set of str
        With single spaces.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    found = set()
    for name in files:
        path = os.path.join(data_folder, name)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"There is no {path}: set data_folder to the folder with the "
                "text files."
            )
        with open(path, encoding="utf-8") as lines:
            found.update(" ".join(line.split()) for line in lines)
    return found


def draw_sentences(sentences, count, n_words, used, rng, split):
    """Draws sentences of some length that are not used elsewhere.

    Arguments
    ---------
    sentences : set of str
        What to draw from.
    count : int
        How many.
    n_words : tuple of int
        Words of the shortest and of the longest.
    used : set of str
        Sentences not to draw.
    rng : random.Random
        Source of randomness.
    split : str
        For messages.

    Returns
    -------
    list of str
        Different sentences, in random order.

    Raises
    ------
    ValueError
        If there are not enough.

    Example
    -------
    >>> rng = random.Random(0)
    >>> draw_sentences({"A B", "A", "B C"}, 1, (2, 3), {"A B"}, rng, "dev")
    ['B C']
    """
    low, high = n_words
    fits = {text for text in sentences if low <= len(text.split()) <= high}
    left = sorted(fits - used)
    logger.info(
        f"{split}: {len(fits)} sentences of {low} to {high} words, "
        f"{len(fits) - len(left)} of them are used elsewhere and left out"
    )
    if len(left) < count:
        raise ValueError(
            f"{split}: {count} sentences are wanted, there are {len(left)}. "
            "Ask for fewer in n_sentences or allow other lengths in n_words."
        )
    return rng.sample(left, count)


def write_csv(path, rows):
    """Writes the CSV file of one split.

    Arguments
    ---------
    path : str
        File to write.
    rows : list of list
        ID, duration, recording, voice and sentence of each utterance.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        writer.writerows(rows)
    hours = sum(row[1] for row in rows) / 3600
    logger.info(f"{path}: {len(rows)} utterances, {hours:.2f} hours")
