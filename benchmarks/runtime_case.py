"""One model of the runtime benchmark on disk: its inputs and its weights.

What serves a model without PyTorch reads only this file and NumPy, so that
its memory is its own.
"""

import json
import os
import random
from pathlib import Path

import numpy as np

__all__ = ["Case", "draw_lengths"]

SHORTEST, LONGEST = 2.0, 20.0  # seconds: what a recognizer is given
CALIBRATION_SECONDS = 4.0  # short: calibrators keep all activations
NUM_CALIBRATION = 4
TOKENS = (20, 60)  # of the prefix that a language model scores

# Seconds; what the rule below chooses from LibriSpeech test-clean (speakers 163
# and 1088, all of the "mini" set), for where the data is not at hand.
DURATIONS = (
    2.79,
    4.33,
    5.92,
    7.53,
    8.61,
    10.57,
    11.78,
    13.24,
    14.76,
    16.25,
    16.43,
    16.64,
)


def draw_lengths(count: int, unit: str, seed: int = 1986) -> list[float]:
    """Draw lengths of inputs.

    Arguments
    ---------
    count : int
        How many.
    unit : str
        ``second``: durations of real utterances, of LibriSpeech's test-clean
        in the folder ``STABLEQUANT_DATA`` if that is set. ``token``: lengths
        of prefixes.
    seed : int
        Seed of the draw.

    Returns
    -------
    list of float
        Lengths, in random order: sorted ones would flatter batches.

    Example
    -------
    >>> all(20 <= length <= 60 for length in draw_lengths(3, "token"))
    True
    """
    generator = random.Random(seed)
    if unit == "token":
        return [generator.randint(*TOKENS) for _ in range(count)]
    found = _real_durations()
    chosen = []
    for index in range(count):
        # Real lengths, but spread over the range: of this data most are
        # about 14 s, and a batch of equal lengths would be too easy.
        wanted = SHORTEST + (LONGEST - SHORTEST) * (index + 0.5) / count
        left = [d for d in found if d not in chosen] or found
        chosen.append(min(left, key=lambda d: abs(d - wanted)))
    generator.shuffle(chosen)
    return chosen


def _real_durations() -> list[float]:
    """Return durations of the utterances at hand that are not too long."""
    folder = os.environ.get("STABLEQUANT_DATA")
    if not folder:
        return list(DURATIONS)
    import soundfile

    paths = sorted(Path(folder).glob("LibriSpeech/test-clean/**/*.flac"))
    if not paths:
        raise FileNotFoundError(
            f"STABLEQUANT_DATA is {folder}, but there is no "
            "LibriSpeech/test-clean in it."
        )
    durations = [round(soundfile.info(path).duration, 2) for path in paths]
    return [d for d in durations if SHORTEST <= d <= LONGEST]


class Case:
    """A model, its weights and its inputs in a folder.

    Arguments
    ---------
    name : str
        Name of the model, see `benchmarks.runtime_models.MODELS`.
    folder : str or Path
        Where inputs, weights and the candidates' files are.
    tiny : bool
        Whether the model is a tiny one of the same kind, for tests.
    """

    def __init__(self, name, folder, tiny=False):
        self.name = name
        self.folder = Path(folder)
        self.tiny = tiny
        self.weights = self.folder / "float.pt"

    def artefact(self, name: str) -> Path:
        """Return the folder of a candidate's files."""
        path = self.folder / "artefacts" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def inputs(self, batch: int) -> list[np.ndarray]:
        """Return the inputs of a batch size."""
        paths = sorted((self.folder / "inputs").glob(f"batch{batch}_*.npy"))
        return [np.load(path) for path in paths]

    def calibration(self) -> list[np.ndarray]:
        """Return the inputs that every static quantizer is calibrated on."""
        paths = sorted((self.folder / "inputs").glob("calibration_*.npy"))
        return [np.load(path) for path in paths]

    def skeleton(self):
        """Return the module without memory for its weights."""
        import torch

        from benchmarks.runtime_models import MODELS

        with torch.device("meta"):
            return MODELS[self.name].build(self.tiny).eval()

    def module(self):
        """Return the float module with its weights, for inference."""
        import torch

        module = self.skeleton()
        state = torch.load(self.weights, weights_only=True)
        # Assigned, not copied: the weights are in memory only once.
        module.load_state_dict(state, assign=True)
        left = [n for n, t in module.named_buffers() if t.is_meta]
        if left:
            raise RuntimeError(f"not in the state: {', '.join(left)}")
        return module.requires_grad_(False)

    def write(self, lengths, batches) -> dict:
        """Write random weights and inputs; return what is known of them.

        Arguments
        ---------
        lengths : list of float
            Lengths of the inputs, in the model's units.
        batches : list of int
            Batch sizes: inputs are joined in order and padded with zeros.

        Returns
        -------
        dict
            For each batch size ``units`` (real length of each input) and
            ``macs`` (operations of each input, padding included); number of
            parameters.
        """
        import torch

        from benchmarks.runtime_models import MODELS, count_macs

        model = MODELS[self.name]
        torch.manual_seed(1986)
        module = model.build(self.tiny).eval()
        torch.save(module.state_dict(), self.weights)
        facts = {
            "num_parameters": sum(p.numel() for p in module.parameters()),
            "lengths": lengths,
            "unit": model.unit,
            "batches": {},
        }
        del module
        (self.folder / "inputs").mkdir(exist_ok=True)
        generator = np.random.default_rng(1986)
        ones = [model.make_input(generator, length) for length in lengths]
        for batch in batches:
            macs, units = [], []
            for index, start in enumerate(range(0, len(ones), batch)):
                array = pad(ones[start : start + batch])
                self._save(f"batch{batch}_{index:03}", array)
                macs.append(count_macs(self.skeleton(), array))
                units.append(sum(lengths[start : start + batch]))
            facts["batches"][str(batch)] = {"macs": macs, "units": units}
        for index in range(NUM_CALIBRATION):
            longest = TOKENS[1] if model.unit == "token" else None
            array = model.make_input(generator, longest or CALIBRATION_SECONDS)
            self._save(f"calibration_{index:03}", array[None])
        path = self.folder / "facts.json"
        path.write_text(json.dumps(facts))
        return facts

    def _save(self, name: str, array: np.ndarray) -> None:
        np.save(self.folder / "inputs" / f"{name}.npy", array)


def pad(arrays: list[np.ndarray]) -> np.ndarray:
    """Join arrays of several lengths to a batch, padded with zeros.

    Example
    -------
    >>> pad([np.ones(2), np.ones(1)]).tolist()
    [[1.0, 1.0], [1.0, 0.0]]
    """
    longest = max(len(array) for array in arrays)
    shape = (len(arrays), longest, *arrays[0].shape[1:])
    batch = np.zeros(shape, arrays[0].dtype)
    for row, array in zip(batch, arrays):
        row[: len(array)] = array
    return batch
