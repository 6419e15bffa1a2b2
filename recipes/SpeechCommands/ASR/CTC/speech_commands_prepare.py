"""Data preparation: strings of Speech Commands words.

Single words make a poor test of a recogniser, so one to five clips of the
same speaker are joined into an utterance ("DOWN EIGHT FIVE GO"). These are
real recordings with a small vocabulary: a small model reaches a low word error
rate, and the test set has enough words for small differences to show.

The folder is read as Google distributes it:
``<data_folder>/<word>/<speaker>_nohash_<take>.wav``. Only the words found in
it are used.
"""

import csv
import os
import random
from collections import defaultdict

import numpy as np
import soundfile as sf
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

SAMPLE_RATE = 16000
SPLITS = ("train", "dev", "test")
FRAME = 320  # 20 ms, the step in which silence is looked for


def prepare_speech_commands(
    data_folder,
    save_folder,
    joined_folder,
    split_ratio=(80, 8, 12),
    rounds=(4, 3, 5),
    max_words=5,
    max_pause=0.3,
    seed=1986,
    skip_prep=False,
):
    """Joins clips into utterances and writes one CSV file per split.

    Speakers are divided between the splits, clips never are. Each round
    shuffles the clips of every speaker and cuts them into strings, so with
    several rounds a clip comes back beside other words: the number of words
    in the dev and test sets counts these repetitions.

    Arguments
    ---------
    data_folder : str
        The folder with one folder per word.
    save_folder : str
        Where ``train.csv``, ``train_words.csv`` (single words, for the first
        epochs), ``dev.csv`` and ``test.csv`` go.
    joined_folder : str
        Where the joined recordings go.
    split_ratio : tuple of int
        Share of the speakers for train, dev and test.
    rounds : tuple of int
        How often each clip is used in train, dev and test.
    max_words : int
        Length of the longest string.
    max_pause : float
        Longest pause between two words, in seconds.
    seed : int
        The same seed gives the same files.
    skip_prep : bool
        If True, nothing is done.
    """
    if skip_prep:
        return
    csv_files = [
        os.path.join(save_folder, f"{name}.csv")
        for name in (*SPLITS, "train_words")
    ]
    if all(os.path.isfile(path) for path in csv_files):
        logger.info("Preparation was completed before, skipping.")
        return
    os.makedirs(save_folder, exist_ok=True)
    clips = find_clips(data_folder)
    rng = random.Random(seed)
    speakers = split_speakers(sorted(clips), split_ratio, rng)
    for split, n_rounds in zip(SPLITS, rounds):
        strings = make_strings(
            {spk: clips[spk] for spk in speakers[split]},
            n_rounds,
            max_words,
            rng,
        )
        folder = os.path.join(joined_folder, split)
        write_split(
            strings, folder, csv_files[SPLITS.index(split)], rng, max_pause
        )
    singles = make_strings(
        {spk: clips[spk] for spk in speakers["train"]}, 1, 1, rng
    )
    folder = os.path.join(joined_folder, "train_words")
    write_split(singles, folder, csv_files[-1], rng, max_pause)


def find_clips(data_folder):
    """Lists the clips of every speaker.

    Arguments
    ---------
    data_folder : str
        The folder with one folder per word.

    Returns
    -------
    clips : dict
        From speaker to a list of (word, path).
    """
    clips = defaultdict(list)
    for word in sorted(os.listdir(data_folder)):
        folder = os.path.join(data_folder, word)
        # Folders such as _background_noise_ hold no words
        if word.startswith(("_", ".")) or not os.path.isdir(folder):
            continue
        for name in sorted(os.listdir(folder)):
            if name.endswith(".wav") and "_nohash_" in name:
                speaker = name.split("_nohash_")[0]
                clips[speaker].append((word, os.path.join(folder, name)))
    if not clips:
        raise FileNotFoundError(
            f"No <word>/<speaker>_nohash_<take>.wav below {data_folder}"
        )
    return dict(clips)


def split_speakers(speakers, split_ratio, rng):
    """Divides the speakers at random.

    Arguments
    ---------
    speakers : list of str
        All the speakers.
    split_ratio : tuple of int
        Share of train, dev and test.
    rng : random.Random
        Source of randomness.

    Returns
    -------
    splits : dict
        From split to its speakers.

    Example
    -------
    >>> splits = split_speakers(list("abcde"), (60, 20, 20), random.Random(0))
    >>> [len(splits[name]) for name in ("train", "dev", "test")]
    [3, 1, 1]
    """
    speakers = list(speakers)
    rng.shuffle(speakers)
    total = sum(split_ratio)
    first = len(speakers) * split_ratio[0] // total
    second = first + len(speakers) * split_ratio[1] // total
    return {
        "train": speakers[:first],
        "dev": speakers[first:second],
        "test": speakers[second:],
    }


def make_strings(clips, rounds, max_words, rng):
    """Cuts the shuffled clips of every speaker into strings.

    Arguments
    ---------
    clips : dict
        From speaker to a list of (word, path).
    rounds : int
        How often each clip is used.
    max_words : int
        Length of the longest string.
    rng : random.Random
        Source of randomness.

    Returns
    -------
    strings : list
        Pairs of an utterance ID, which starts with the speaker, and a list of
        (word, path).
    """
    strings = []
    for speaker in sorted(clips):
        for turn in range(rounds):
            left = list(clips[speaker])
            rng.shuffle(left)
            while left:
                size = rng.randint(1, max_words)
                utt_id = f"{speaker}-{turn}-{len(left)}"
                strings.append((utt_id, left[:size]))
                left = left[size:]
    return strings


def write_split(strings, folder, csv_file, rng, max_pause):
    """Writes the recordings and the CSV file of one split.

    Arguments
    ---------
    strings : list
        What ``make_strings`` returns.
    folder : str
        Where the recordings go.
    csv_file : str
        Where the CSV file goes.
    rng : random.Random
        Source of randomness.
    max_pause : float
        Longest pause between two words, in seconds.
    """
    os.makedirs(folder, exist_ok=True)
    rows, n_words = [], 0
    for utt_id, string in strings:
        parts = []
        for i, (_, path) in enumerate(string):
            if i > 0:
                pause = rng.uniform(0, max_pause)
                parts.append(np.zeros(int(pause * SAMPLE_RATE), "float32"))
            parts.append(read_trimmed(path))
        audio = np.concatenate(parts)
        wav = os.path.join(os.path.abspath(folder), f"{utt_id}.wav")
        sf.write(wav, audio, SAMPLE_RATE, subtype="PCM_16")
        words = " ".join(word.upper() for word, _ in string)
        duration = len(audio) / SAMPLE_RATE
        rows.append([utt_id, duration, wav, utt_id.split("-")[0], words])
        n_words += len(string)
    with open(csv_file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
        writer.writerows(rows)
    hours = sum(row[1] for row in rows) / 3600
    logger.info(
        f"{csv_file}: {len(rows)} utterances, {n_words} words, {hours:.2f} h"
    )


def read_trimmed(path, threshold=0.05, margin=4):
    """Reads a clip without most of the silence at its ends.

    Arguments
    ---------
    path : str
        The clip.
    threshold : float
        Frames below this share of the loudest frame count as silence.
    margin : int
        Frames kept before and after the word.

    Returns
    -------
    audio : np.ndarray
        Samples, with a short fade at both ends so that the joint is silent.
    """
    audio, sample_rate = sf.read(path, dtype="float32")
    if sample_rate != SAMPLE_RATE:
        raise ValueError(f"{path}: {sample_rate} Hz, not {SAMPLE_RATE}")
    frames = audio[: len(audio) // FRAME * FRAME].reshape(-1, FRAME)
    level = np.sqrt((frames**2).mean(axis=1))
    loud = np.flatnonzero(level > threshold * level.max(initial=0.0))
    if len(loud):
        start = max(loud[0] - margin, 0) * FRAME
        audio = audio[start : (loud[-1] + 1 + margin) * FRAME]
    fade = np.linspace(0, 1, FRAME // 2, dtype="float32")
    audio[: len(fade)] *= fade
    audio[-len(fade) :] *= fade[::-1]
    return audio
