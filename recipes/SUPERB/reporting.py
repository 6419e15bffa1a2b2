"""Results of the tasks: per utterance, and with intervals."""

import csv
import json
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.metrics.metric import Item, Metric

logger = get_logger(__name__)


def write_predictions(path, rows):
    """Writes what a classifier said of each utterance.

    Arguments
    ---------
    path : str
        The CSV file.
    rows : list of tuple
        Utterance id, reference and prediction.
    """
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "reference", "prediction"])
        writer.writerows(sorted(rows))


def error_items(rows):
    """Returns the errors of a classifier, one item for each utterance.

    Arguments
    ---------
    rows : list of tuple
        As for ``write_predictions``.

    Returns
    -------
    items : list of Item

    Example
    -------
    >>> [
    ...     item.errors
    ...     for item in error_items([("a", "x", "x"), ("b", "x", "y")])
    ... ]
    [0.0, 1.0]
    """
    return [
        Item(str(utt), float(reference != prediction), 1.0)
        for utt, reference, prediction in rows
    ]


def report_result(path, name, items, metric=None):
    """Logs an error rate with its interval and writes it.

    Arguments
    ---------
    path : str
        JSON file, with the errors of each utterance, from which a paired
        comparison with another encoder can be made.
    name : str
        ``WER``, ``EER``, or ``accuracy``: that is logged and written as what
        is left of 100 %.
    items : list of Item
        Errors of each utterance, of which also those of accuracy are counted.
    metric : Metric, optional
        By default the ratio of two sums over utterances.

    Returns
    -------
    result : dict
        What was written.
    """
    rate = (metric or Metric("error")).interval(items)
    value, low, high = rate.value, rate.low, rate.high
    if name == "accuracy":
        value, low, high = 100 - value, 100 - high, 100 - low
    logger.info(
        f"{name} {value:.2f} %, 95 % bootstrap interval, "
        f"{len(items)} utterances: [{low:.2f}, {high:.2f}]"
    )
    result = {"metric": name, "value": value, "low": low, "high": high}
    # Verification keeps embeddings, of which the scores are written instead
    if metric is None:
        result["items"] = [[i.key, i.errors, i.weight] for i in items]
    Path(path).write_text(json.dumps(result) + "\n", encoding="utf-8")
    return result
