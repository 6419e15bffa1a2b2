"""Lists of trials: reading them, and which ones a set of utterances completes."""

import csv
import functools
import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from speechbrain_stablequant.errors import StableQuantError

__all__ = ["Pairs", "Trials", "canonical_id", "read_ids", "speaker_of"]

_EXTENSION = re.compile(r"\.(wav|flac|mp3|m4a|ogg|opus|sph)$", re.IGNORECASE)


def canonical_id(utterance: str) -> str:
    """Return the form in which ids of lists and of data sets are compared.

    Lists of trials name files; data sets often leave the extension out, or
    write ``--`` instead of ``/``.

    Arguments
    ---------
    utterance : str
        An id of either kind.

    Returns
    -------
    str
        Without the extension of an audio file, with slashes.

    Example
    -------
    >>> canonical_id("id10001--1zcIwhmdeo4--00001")
    'id10001/1zcIwhmdeo4/00001'
    >>> canonical_id("id10001/1zcIwhmdeo4/00001.wav")
    'id10001/1zcIwhmdeo4/00001'
    """
    return _EXTENSION.sub("", str(utterance).strip()).replace("--", "/")


def speaker_of(utterance: str) -> str:
    """Return the speaker in an id: what precedes the first ``/`` or ``--``.

    Arguments
    ---------
    utterance : str
        Utterance id; without either mark it is a speaker of its own.

    Returns
    -------
    str
        Name of the speaker.

    Example
    -------
    >>> speaker_of("id10001/1zcIwhmdeo4/00001.wav")
    'id10001'
    """
    return canonical_id(utterance).partition("/")[0]


@dataclass(frozen=True, eq=False)
class Pairs:
    """The trials that some utterances complete.

    Arguments
    ---------
    trials : array of int
        Which of all trials they are.
    target : array of bool
        Whether each is of one speaker.
    rows : array of int
        Which of the utterances take part.
    enrol : array of int
        Enrolment utterance of each trial, as an index into ``rows``.
    test : array of int
        Test utterance of each trial, as an index into ``rows``.
    enrol_speaker : array of int
        Speaker of the enrolment utterance.
    test_speaker : array of int
        Speaker of the test utterance.
    speakers : int
        How many speakers there are.
    """

    trials: np.ndarray
    target: np.ndarray
    rows: np.ndarray
    enrol: np.ndarray
    test: np.ndarray
    enrol_speaker: np.ndarray
    test_speaker: np.ndarray
    speakers: int

    @property
    def comparable(self) -> bool:
        """Whether both kinds of trials are there, so that rates exist."""
        return bool(self.target.any() and not self.target.all())

    def weights(self, drawn: np.ndarray) -> np.ndarray:
        """Return how often each trial occurs when speakers are drawn.

        Arguments
        ---------
        drawn : array (speakers, draws)
            How often each speaker was drawn.

        Returns
        -------
        array (trials, draws)
            The product over a trial's two speakers; within one speaker
            how often that one was drawn.
        """
        weights = drawn[self.enrol_speaker]
        across = np.flatnonzero(self.enrol_speaker != self.test_speaker)
        weights[across] *= drawn[self.test_speaker[across]]
        return weights


class Trials:
    """A list of trials, parsed.

    Arguments
    ---------
    rows : iterable of tuple
        Label (1 for one speaker, 0 for two), enrolment id, test id.
    source : str
        What to call the list in errors.
    speaker : callable
        Speaker of an utterance id.

    Raises
    ------
    StableQuantError
        If the list is empty or one of its rows is malformed.

    Example
    -------
    >>> trials = Trials([(1, "a/1.wav", "a/2.wav"), (0, "a/1.wav", "b/1.wav")])
    >>> trials.complete(("a/1", "b/1")).trials
    array([1])
    """

    def __init__(
        self,
        rows: Iterable[tuple],
        source: str = "trials",
        speaker: Callable[[str], str] = speaker_of,
    ):
        located = ((f"{source}, trial {i}", r) for i, r in enumerate(rows))
        self._fill(located, source, speaker)

    @classmethod
    def read(cls, path, speaker=speaker_of) -> "Trials":
        """Read a list like VoxCeleb's ``veri_test.txt``.

        A file that has not changed is parsed once.

        Arguments
        ---------
        path : str or Path
            The file: ``<label> <enrolment> <test>`` in each line.
        speaker : callable
            Speaker of an utterance id.

        Returns
        -------
        Trials
            The list.
        """
        return _read_trials(*_stamped(path, "The list of trials"), speaker)

    def _fill(self, located, source, speaker) -> None:
        index: dict[str, int] = {}
        labels, enrol, test = [], [], []
        for where, row in located:
            label, *pair = _checked(where, row)
            first, second = (
                index.setdefault(canonical_id(name), len(index))
                for name in pair
            )
            labels.append(label)
            enrol.append(first)
            test.append(second)
        if not labels:
            raise StableQuantError(f"{source} has no trials.")
        self.source, self.speaker = source, speaker
        self.ids = tuple(index)
        self.target = np.array(labels, dtype=bool)
        self.enrol, self.test = np.array(enrol), np.array(test)
        self._known = frozenset(index)
        names = [speaker(name) for name in self.ids]
        self._speaker = np.unique(names, return_inverse=True)[1]
        self._pairs: dict[tuple, Pairs] = {}
        content = repr((self.ids, names)).encode()
        for array in (self.target, self.enrol, self.test):
            content += array.tobytes()
        self.digest = hashlib.sha256(content).hexdigest()

    def __len__(self) -> int:
        return len(self.target)

    def __contains__(self, utterance: str) -> bool:
        return utterance in self._known

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Trials) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Trials({len(self)} from {self.source})"

    def complete(self, keys: tuple[str, ...]) -> Pairs:
        """Return the trials both of whose utterances are there.

        Arguments
        ---------
        keys : tuple of str
            Canonical ids of the utterances; asking again costs nothing.

        Returns
        -------
        Pairs
            Maybe empty.
        """
        found = self._pairs.get(keys)
        if found is None:
            # A search asks for its subset and for its whole set
            if len(self._pairs) >= 4:
                self._pairs.pop(next(iter(self._pairs)))
            found = self._pairs[keys] = self._find(keys)
        return found

    def _find(self, keys: tuple[str, ...]) -> Pairs:
        position = {key: i for i, key in enumerate(keys)}
        where = np.array([position.get(name, -1) for name in self.ids])
        kept = np.flatnonzero(
            (where[self.enrol] >= 0) & (where[self.test] >= 0)
        )
        enrol, test, count = self.enrol[kept], self.test[kept], len(kept)
        rows, row = np.unique(
            where[np.concatenate([enrol, test])], return_inverse=True
        )
        names, speaker = np.unique(
            self._speaker[np.concatenate([enrol, test])], return_inverse=True
        )
        return Pairs(
            trials=kept,
            target=self.target[kept],
            rows=rows,
            enrol=row[:count],
            test=row[count:],
            enrol_speaker=speaker[:count],
            test_speaker=speaker[count:],
            speakers=len(names),
        )


def _checked(where: str, row) -> tuple[bool, str, str]:
    row = tuple(row)
    if len(row) != 3 or str(row[0]) not in ("0", "1", "False", "True"):
        shown = " ".join(map(str, row))
        raise StableQuantError(
            f"{where}: expected '<0 or 1> <enrolment id> <test id>', found "
            f"'{shown[:120]}'."
        )
    return str(row[0]) in ("1", "True"), row[1], row[2]


def _stamped(path, what: str) -> tuple[str, int, int]:
    """Return a path with what changes when its file does."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise StableQuantError(
            f"{what} {path} cannot be read: {error.strerror}."
        ) from error
    return os.fspath(path), stat.st_mtime_ns, stat.st_size


@functools.lru_cache(maxsize=8)
def _read_trials(path: str, _mtime: int, _size: int, speaker) -> Trials:
    with open(path, encoding="utf-8", errors="replace") as file:
        located = (
            (f"{path}:{number}", line.split())
            for number, line in enumerate(file, 1)
            if line.strip()
        )
        trials = Trials.__new__(Trials)
        trials._fill(located, path, speaker)
    return trials


def read_ids(source, what: str = "The cohort") -> tuple[str, ...]:
    """Return utterance ids, canonical and each once.

    Arguments
    ---------
    source : str, Path or iterable of str
        The ids, or a file with one in the first column of each line: ``.csv``
        with or without a header that begins with ``ID``, or plain text.
    what : str
        What to call it in errors.

    Returns
    -------
    tuple of str
        In the order in which they come.

    Raises
    ------
    StableQuantError
        If the file cannot be read or has no ids.

    Example
    -------
    >>> read_ids(["a--1.wav", "a/1", "b/1.wav"])
    ('a/1', 'b/1')
    """
    if isinstance(source, (str, os.PathLike)):
        return _read_ids(*_stamped(source, what), what)
    return _unique(source, "list", what)


@functools.lru_cache(maxsize=8)
def _read_ids(path, _mtime, _size, what) -> tuple[str, ...]:
    table = path.lower().endswith(".csv")
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file) if table else (line.split() for line in file)
        names = [row[0] for row in rows if row and row[0].strip()]
    if table and names and names[0].strip().upper() == "ID":
        del names[0]
    return _unique(names, path, what)


def _unique(names: Iterable[str], source: str, what: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(map(canonical_id, names)))
    if not found:
        raise StableQuantError(f"{what} ({source}) has no utterance ids.")
    return found
