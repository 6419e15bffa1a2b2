"""Data preparation: synthetic digit strings in many voices.

espeak-ng speaks strings such as "THREE ONE FOUR", so that a recogniser can be
trained, quantized and tested within minutes on a machine without any speech
data. The voices of the train, dev and test sets are different.

The package ``espeakng-loader`` brings the synthesiser and its voices:
``pip install espeakng-loader``.
"""

import csv
import ctypes
import os
import random

import numpy as np
import soundfile as sf
from scipy.signal import resample_poly
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)

SAMPLE_RATE = 16000
DIGITS = "ZERO ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE".split()
ACCENTS = ("en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-029")

# Variants of espeak-ng that sound like people: no robots, no whispering
VARIANTS = (
    "Alex Alicia Andrea Andy Annie Denis Diogo Gene Gene2 Hugo Jacky Lee "
    "Marco Mario Michael Mike adam anika antonio aunty belinda benjamin boris "
    "caleb david ed edward f1 f2 f3 f4 f5 grandma grandpa gustave ian iven "
    "iven2 iven3 john linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo max michel miguel "
    "norbert pablo paul pedro quincy rob robert sandro shelby steph steph2 "
    "steph3 travis victor zac"
).split()


def prepare_digit_strings(
    save_folder,
    audio_folder,
    n_strings=(1500, 100, 250),
    voice_ratio=(80, 8, 12),
    max_digits=5,
    snr=(15, 35),
    seed=1986,
    skip_prep=False,
):
    """Synthesises the strings and writes one CSV file per split.

    Arguments
    ---------
    save_folder : str
        Where ``train.csv``, ``dev.csv`` and ``test.csv`` go.
    audio_folder : str
        Where the recordings go.
    n_strings : tuple of int
        Number of utterances for train, dev and test.
    voice_ratio : tuple of int
        Share of the voices for train, dev and test.
    max_digits : int
        Length of the longest string.
    snr : tuple of float
        White noise is added at a level between these, in dB.
    seed : int
        The same seed gives the same strings and voices.
    skip_prep : bool
        If True, nothing is done.
    """
    splits = ("train", "dev", "test")
    csv_files = [os.path.join(save_folder, f"{name}.csv") for name in splits]
    if skip_prep or all(os.path.isfile(path) for path in csv_files):
        logger.info("Skipping preparation.")
        return
    os.makedirs(save_folder, exist_ok=True)
    voices = random.Random(seed).sample(VARIANTS, len(VARIANTS))
    speak = Synthesizer()
    ends = np.cumsum(voice_ratio) * len(voices) // sum(voice_ratio)
    for i, split in enumerate(splits):
        start = ends[i - 1] if i > 0 else 0
        # A split has its own randomness, so that the size of one does not
        # change the strings and voices of the others. (The recordings differ
        # by milliseconds: espeak-ng itself remembers what it said before.)
        rng = random.Random(f"{seed} {split}")
        rows = []
        for n in range(n_strings[i]):
            utt_id = f"{split}-{n:05d}"
            voice = rng.choice(voices[start : ends[i]])
            digits = rng.choices(DIGITS, k=rng.randint(1, max_digits))
            audio = speak.random(digits, voice, rng)
            audio = add_white_noise(audio, rng.uniform(*snr), rng)
            wav = os.path.join(audio_folder, split, f"{utt_id}.wav")
            wav = os.path.abspath(wav)
            os.makedirs(os.path.dirname(wav), exist_ok=True)
            sf.write(wav, audio, SAMPLE_RATE, subtype="PCM_16")
            duration = len(audio) / SAMPLE_RATE
            rows.append([utt_id, duration, wav, voice, " ".join(digits)])
        with open(csv_files[i], "w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["ID", "duration", "wav", "spk_id", "wrd"])
            writer.writerows(rows)
        logger.info(f"{csv_files[i]}: {len(rows)} utterances")


class Synthesizer:
    """espeak-ng, called in the same process.

    Example
    -------
    >>> Synthesizer()("one two", "en-us+f3").ndim
    1
    """

    RATE, PITCH, RANGE = 1, 3, 4  # espeak_PARAMETER
    SYNCHRONOUS, POSITION_CHARACTER, UTF8 = 2, 1, 1

    def __init__(self):
        try:
            import espeakng_loader
        except ImportError as err:
            raise ImportError(
                "Synthesising the digits needs the package espeakng-loader: "
                "pip install espeakng-loader"
            ) from err
        self.lib = ctypes.CDLL(espeakng_loader.get_library_path())
        self.sample_rate = self.lib.espeak_Initialize(
            self.SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0
        )
        if self.sample_rate <= 0:
            raise RuntimeError("espeak-ng found no voice data")
        self.chunks = []
        # The library keeps the pointer only, so the object must live on
        self.callback = ctypes.CFUNCTYPE(
            ctypes.c_int,
            ctypes.POINTER(ctypes.c_short),
            ctypes.c_int,
            ctypes.c_void_p,
        )(self._collect)
        self.lib.espeak_SetSynthCallback(self.callback)

    def _collect(self, samples, n_samples, events):
        """Receives a piece of audio."""
        if samples and n_samples > 0:
            chunk = np.ctypeslib.as_array(samples, (n_samples,))
            self.chunks.append(chunk.astype("float32") / 2**15)
        return 0

    def __call__(self, text, voice, rate=160, pitch=50, pitch_range=50):
        """Speaks a text.

        Arguments
        ---------
        text : str
            What to say.
        voice : str
            Language and variant, as in "en-us+f3".
        rate : int
            Words per minute.
        pitch : int
            0 to 100.
        pitch_range : int
            0 to 100.

        Returns
        -------
        audio : np.ndarray
            Samples at 16 kHz.
        """
        if self.lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice}")
        for number, value in (
            (self.RATE, rate),
            (self.PITCH, pitch),
            (self.RANGE, pitch_range),
        ):
            self.lib.espeak_SetParameter(number, value, 0)
        self.chunks.clear()
        data = text.encode() + b"\0"
        self.lib.espeak_Synth(
            data,
            ctypes.c_size_t(len(data)),
            0,
            self.POSITION_CHARACTER,
            0,
            self.UTF8,
            None,
            None,
        )
        self.lib.espeak_Synchronize()
        audio = np.concatenate(self.chunks)
        return resample_poly(audio, SAMPLE_RATE, self.sample_rate)

    def random(self, digits, variant, rng):
        """Speaks digits with a random accent, speed, pitch and level.

        Arguments
        ---------
        digits : list of str
            What to say.
        variant : str
            The voice, without language.
        rng : random.Random
            Source of randomness.

        Returns
        -------
        audio : np.ndarray
            Samples at 16 kHz.
        """
        audio = self(
            " ".join(digits).lower(),
            f"{rng.choice(ACCENTS)}+{variant}",
            rate=rng.randint(130, 190),
            pitch=rng.randint(35, 65),
            pitch_range=rng.randint(35, 65),
        )
        return audio / np.abs(audio).max() * rng.uniform(0.3, 0.9)


def add_white_noise(audio, snr, rng):
    """Adds white noise.

    Arguments
    ---------
    audio : np.ndarray
        Samples.
    snr : float
        Power of the speech over that of the noise, in dB.
    rng : random.Random
        Source of randomness.

    Returns
    -------
    audio : np.ndarray
        Noisy samples.

    Example
    -------
    >>> clean = np.ones(4000)
    >>> noise = add_white_noise(clean, 20, random.Random(0)) - clean
    >>> round(float(noise.std()), 2)
    0.1
    """
    noise = np.random.default_rng(rng.getrandbits(32)).normal(size=len(audio))
    level = np.sqrt(np.mean(audio**2)) * 10 ** (-snr / 20)
    return (audio + level * noise).clip(-1, 1)
