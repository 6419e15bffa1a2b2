"""Pass the results to the train logger of a recipe."""

from collections.abc import Mapping
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_stablequant.core.format import is_number
from speechbrain_stablequant.report.rows import speed_of

__all__ = ["log_results", "logged_values"]

logger = get_logger(__name__)


def logged_values(report: dict) -> dict[str, float]:
    """Return the values of the last test pass, by a name for loggers.

    Arguments
    ---------
    report : dict
        As in ``report.json``.

    Returns
    -------
    dict
        ``ptq/<test>/<metric>/float``, ``.../quantized`` and ``.../change``,
        the speed of both passes where it was measured, and ``ptq/size_ratio``
        (bytes on disk, quantized over float). What is not known is left out.
    """
    found = {}
    for test in report["tests"][-1:]:
        head = f"ptq/{test['name']}"
        for name, row in test["metrics"].items():
            for key in ("float", "quantized", "change"):
                found[f"{head}/{name}/{key}"] = row.get(key)
        speed = speed_of(test)
        if speed is not None:
            label, before, after = speed
            label = label.replace(" ", "_")
            found[f"{head}/{label}/float"] = before
            found[f"{head}/{label}/quantized"] = after
    files = report["files"]
    total = sum(file["float_num_bytes"] for file in files)
    if total:
        size = sum(file["num_bytes"] for file in files)
        found["ptq/size_ratio"] = size / total
    return {key: value for key, value in found.items() if is_number(value)}


def log_results(
    train_logger, report: dict, table: str, pictures: Mapping[str, Path]
) -> None:
    """Pass the results of the last test pass to the recipe's logger.

    ``TensorboardLogger``: values, the table as text and pictures.
    ``WandBLogger``: values and pictures. ``FileTrainLogger``: nothing, its
    file has the table. Any other ``TrainLogger``: values through its
    ``log_stats``. An error of a logger becomes a warning: the results are on
    disk already.

    Arguments
    ---------
    train_logger : speechbrain.utils.train_logger.TrainLogger, optional
        The recipe's.
    report : dict
        As in ``report.json``.
    table : str
        The table as text.
    pictures : dict
        Path of a PNG by name.
    """
    if train_logger is None:
        return
    # Not at the top: importing it warns of a missing torchvision.
    from speechbrain.utils import train_logger as known

    if not isinstance(train_logger, known.TrainLogger) or isinstance(
        train_logger, known.FileTrainLogger
    ):
        return
    try:
        values = logged_values(report)
        if isinstance(train_logger, known.TensorboardLogger):
            _to_tensorboard(train_logger, values, table, pictures)
        elif isinstance(train_logger, known.WandBLogger):
            _to_wandb(train_logger, values, pictures)
        elif values:
            train_logger.log_stats({}, test_stats=values)
    except Exception as err:
        logger.warning(
            "The results could not be passed to the recipe's %s (%s: %s); they "
            "are in report.json.",
            type(train_logger).__name__,
            type(err).__name__,
            err,
        )


def _to_tensorboard(train_logger, values, table, pictures) -> None:
    from matplotlib.image import imread

    writer, step = train_logger.writer, train_logger.global_step["meta"]
    for name, value in values.items():
        writer.add_scalar(name, value, step)
    # Markdown: an indented block keeps its columns
    text = "\n".join(f"    {line}" for line in table.splitlines())
    writer.add_text("ptq/table", text, step)
    for name, path in pictures.items():
        writer.add_image(f"ptq/{name}", imread(path), step, dataformats="HWC")
    writer.flush()


def _to_wandb(train_logger, values, pictures) -> None:
    import wandb

    images = {
        f"ptq/{name}": wandb.Image(str(path)) for name, path in pictures.items()
    }
    train_logger.run.log({**values, **images})
