"""A metric object of SpeechBrain's kind for speaker verification."""

import functools
import os
from typing import Callable, Optional

import numpy as np
import torch
from speechbrain.utils.metric_stats import MetricStats

from speechbrain_stablequant.core.options import check_choice
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.metrics.metric import Item, Metric
from speechbrain_stablequant.metrics.verification.cosine import (
    CosineBackend,
    check_score_norm,
)
from speechbrain_stablequant.metrics.verification.error_rates import (
    eer,
    min_dcf,
)
from speechbrain_stablequant.metrics.verification.metric import (
    RATES,
    VerificationMetric,
    embedding_item,
)
from speechbrain_stablequant.metrics.verification.trials import (
    Pairs,
    Trials,
    canonical_id,
    read_ids,
    speaker_of,
)

__all__ = ["VerificationStats"]


class VerificationStats(MetricStats):
    """A class for tracking equal error rate and minDCF over trials.

    Embeddings are appended batch by batch; trials are scored when asked. Ids
    match with or without the extension of an audio file, and with ``--`` for
    ``/``. Files are read when first needed, and parsed again only when they
    change.

    After `summarize`, ``scores`` holds the score of each trial that was
    complete and ``ids`` its two utterances.

    Arguments
    ---------
    trials : str, Path or list of tuple
        A list like VoxCeleb's ``veri_test.txt``, ``<label> <enrolment>
        <test>`` in each line, or such tuples.
    score_norm : str, optional
        ``z-norm``, ``t-norm`` or ``s-norm``, as in SpeechBrain's recipe.
    cohort : str, Path or list of str, optional
        Ids of the utterances to normalize against, or a file that has them in
        its first column. Their embeddings must be appended as well. Without
        ``score_norm`` it is not used.
    cohort_size : int, optional
        How many of the highest scores against the cohort to take for each
        utterance (adaptive normalization); all when None.
    speaker : callable
        Speaker of an utterance id; confidence intervals draw speakers.

    Raises
    ------
    KnobError
        If the options of normalization are unknown or do not go together.

    Example
    -------
    >>> stats = VerificationStats([(1, "a/1", "a/2"), (0, "a/1", "b/1")])
    >>> stats.append(["a/1", "a/2"], torch.tensor([[1.0, 0.0], [1.0, 0.1]]))
    >>> stats.append(["b/1"], torch.tensor([[0.0, 1.0]]))
    >>> stats.summarize("EER")
    0.0
    >>> stats.summary["trials"]
    2
    """

    def __init__(
        self,
        trials,
        score_norm: Optional[str] = None,
        cohort=None,
        cohort_size: Optional[int] = None,
        speaker: Callable[[str], str] = speaker_of,
    ):
        check_score_norm(score_norm, cohort is not None, cohort_size)
        self._trials, self._cohort, self._speaker = trials, cohort, speaker
        self.score_norm, self.cohort_size = score_norm, cohort_size
        self.clear()

    @functools.cached_property
    def backend(self) -> CosineBackend:
        """What scores the trials; reads their file when first asked."""
        read = isinstance(self._trials, (str, os.PathLike))
        make = Trials.read if read else Trials
        return CosineBackend(
            make(self._trials, speaker=self._speaker),
            self.score_norm,
            read_ids(self._cohort) if self.score_norm else (),
            self.cohort_size,
        )

    def clear(self):
        """Forget all embeddings and scores."""
        super().clear()
        self.embeddings: dict[str, np.ndarray] = {}

    def append(self, ids, embeddings):
        """Store the embeddings of a batch.

        Arguments
        ---------
        ids : list of str
            Utterance ids. Of an utterance that comes again the last
            embedding is kept.
        embeddings : torch.Tensor
            Of shape (batch, dim) or (batch, 1, dim).

        Raises
        ------
        StableQuantError
            If the shape is another one.
        """
        shape = tuple(embeddings.shape)
        if len(shape) == 3 and shape[1] == 1:
            embeddings = embeddings.squeeze(1)
        if embeddings.dim() != 2 or len(embeddings) != len(ids):
            raise StableQuantError(
                f"Embeddings of shape {shape} for {len(ids)} utterances: "
                "expected (batch, dim) or (batch, 1, dim)."
            )
        # A copy: these may be a view of a buffer that the next batch reuses
        rows = embeddings.detach().to("cpu", torch.float32, copy=True).numpy()
        self.embeddings.update(zip(map(canonical_id, ids), rows))
        self.summary = {}

    def summarize(self, field=None):
        """Score the complete trials and return their error rates.

        Arguments
        ---------
        field : str
            If provided, only returns selected statistic. If not,
            returns all computed statistics.

        Returns
        -------
        float or dict
            ``EER`` in percent with its ``threshold``; ``minDCF`` times
            100, as SpeechBrain's script logs it; how many ``trials`` were
            complete; with normalization how many utterances
            of the ``cohort`` were there.

        Raises
        ------
        StableQuantError
            If no trial of one speaker, or none of two, is complete, or an
            embedding is not finite.
        """
        pairs, scores = self._score()
        positive, negative = scores[pairs.target], scores[~pairs.target]
        rate, threshold = eer(positive, negative)
        self.scores = scores.tolist()
        self.ids = [" ".join(names) for names in self._names(pairs)]
        self.summary = {
            "EER": 100 * rate,
            "minDCF": 100 * min_dcf(positive, negative)[0],
            "threshold": threshold,
            "trials": len(scores),
        }
        if self.score_norm:
            there = self.embeddings.keys() & set(self.backend.cohort)
            self.summary["cohort"] = len(there)
        if field is None:
            return self.summary
        check_choice("Statistic of verification", field, self.summary)
        return self.summary[field]

    def _score(self) -> tuple[Pairs, np.ndarray]:
        keys = tuple(sorted(self.embeddings))
        if keys:
            rows = [self.embeddings[key] for key in keys]
            pairs, scores = self.backend.score(keys, np.stack(rows))
            if len(scores):
                return pairs, scores
        trials = self.backend.trials
        raise StableQuantError(
            f"Of {len(trials)} trials ({trials.source}) none has the "
            f"embeddings of both its utterances. They name e.g. "
            f"'{trials.ids[0]}'; {len(keys)} utterances were appended"
            + (f", e.g. '{keys[0]}'." if keys else ".")
        )

    def _names(self, pairs: Pairs) -> list[tuple[str, str]]:
        trials = self.backend.trials
        return [
            (trials.ids[first], trials.ids[second])
            for first, second in zip(
                trials.enrol[pairs.trials], trials.test[pairs.trials]
            )
        ]

    def write_scores(self, path) -> None:
        """Write the score of each complete trial, as SpeechBrain's script.

        Arguments
        ---------
        path : str or Path
            A file of ``<enrolment> <test> <label> <score>`` lines.
        """
        pairs, scores = self._score()
        with open(path, "w", encoding="utf-8") as file:
            for names, label, score in zip(
                self._names(pairs), pairs.target, scores
            ):
                file.write(f"{' '.join(names)} {label:d} {score:f}\n")

    def write_stats(self, filestream, verbose=False):
        """Write all relevant statistics to file.

        Arguments
        ---------
        filestream : file-like object
            A stream for the stats to be written to.
        verbose : bool
            Whether to also print the stats to stdout.
        """
        summary = self.summary or self.summarize()
        message = (
            f"EER (%): {summary['EER']:.4f} "
            f"at a threshold of {summary['threshold']:.6f}\n"
            f"minDCF: {summary['minDCF']:.4f}\n"
            f"Trials: {summary['trials']} of {len(self.backend.trials)}\n"
        )
        if self.score_norm:
            message += (
                f"{self.score_norm} over {summary['cohort']} of "
                f"{len(self.backend.cohort)} cohort utterances\n"
            )
        filestream.write(message)
        if verbose:
            print(message)

    def quantization_metrics(self) -> dict[str, tuple[Metric, list[Item]]]:
        """Return EER and minDCF with the utterances they are computed from.

        A search scores batch by batch and joins the items, so utterances are
        returned although their own batch may complete no trial.

        Returns
        -------
        dict
            Empty when nothing was appended. Utterances that are in no trial,
            and in no cohort that is used, are left out.
        """
        if not self.embeddings:
            return {}
        items = [
            embedding_item(key, embedding)
            for key, embedding in self.embeddings.items()
            if self.backend.uses(key)
        ]
        return {
            rate: (VerificationMetric.of(rate, self.backend), items)
            for rate in RATES
        }
