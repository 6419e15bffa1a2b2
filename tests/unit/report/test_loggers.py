"""Results in the loggers of recipes: read back from what they wrote."""

import logging

import pytest
from speechbrain.utils.train_logger import (
    FileTrainLogger,
    TensorboardLogger,
    TrainLogger,
    WandBLogger,
)

from speechbrain_stablequant.report import Report
from speechbrain_stablequant.report.loggers import logged_values
from tests.unit.report.helpers import flagging_search, planned, with_statistics
from tests.unit.report.test_report import NAN, Item, result


@pytest.fixture
def report():
    report = Report("W8A8", with_statistics(planned(flagging_search())))
    report.files = [
        {
            "name": "model",
            "path": "model.ckpt",
            "num_bytes": 30,
            "float_num_bytes": 120,
            "float_measured_on": "checkpoint file",
        }
    ]
    report.add(result(), seed=1)
    return report


class StatsLogger(TrainLogger):
    """Keeps what it is given, as somebody's own logger may."""

    def __init__(self):
        self.stats = []

    def log_stats(
        self,
        stats_meta,
        train_stats=None,
        valid_stats=None,
        test_stats=None,
        verbose=False,
    ):
        self.stats.append((stats_meta, test_stats))


class BrokenLogger(TrainLogger):
    """Refuses everything."""

    def log_stats(self, *args, **kwargs):
        raise ConnectionError("no network")


def test_values(report):
    values = logged_values(report.to_dict())
    row = report.tests[0]["metrics"]["WER"]
    assert values["ptq/test/WER/float"] == row["float"]
    assert values["ptq/test/WER/quantized"] == row["quantized"]
    assert values["ptq/test/WER/change"] == row["change"]
    assert values["ptq/size_ratio"] == 0.25
    assert "ptq/test/loss/change" not in values


def test_values_are_those_of_the_last_test(report):
    report.add(result("other", after=[Item("a", NAN, 1)], before=None), seed=1)
    values = logged_values(report.to_dict())
    assert set(values) == {
        "ptq/other/loss/float",
        "ptq/other/loss/quantized",
        "ptq/size_ratio",
    }


def test_tensorboard_has_values_table_and_pictures(report, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    train_logger = TensorboardLogger(str(tmp_path / "events"))
    train_logger.log_stats({"epoch": 1}, valid_stats={"loss": 1.0})
    report.publish(tmp_path / "ptq", train_logger)
    train_logger.log_stats({"epoch": 2}, valid_stats={"loss": 0.5})
    train_logger.writer.close()
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    for name, value in logged_values(report.to_dict()).items():
        (event,) = events.Scalars(name)
        assert event.value == pytest.approx(value)
        assert event.step == 1
    tags = events.Tags()
    assert {"ptq/sizes", "ptq/sensitivity", "ptq/bits"} <= set(tags["images"])
    image = events.Images("ptq/sizes")[0]
    assert image.width > 600
    assert image.encoded_image_string.startswith(b"\x89PNG")
    text = events.Tensors("ptq/table/text_summary")[0]
    assert "test WER" in text.tensor_proto.string_val[0].decode()
    assert len(events.Scalars("loss/valid")) == 2


def test_wandb_gets_values_and_pictures(report, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train_logger = WandBLogger(wandb.init, project="p", dir=str(tmp_path))
    report.publish(tmp_path / "ptq", train_logger)
    summary = dict(train_logger.run.summary)
    train_logger.run.finish()
    for name, value in logged_values(report.to_dict()).items():
        assert summary[name] == pytest.approx(value)
    assert summary["ptq/sizes"]["_type"] == "image-file"


def test_the_file_has_the_table_once(report, tmp_path):
    path = tmp_path / "train_log.txt"
    path.write_text("epoch: 1\n")
    report.publish(tmp_path / "ptq", FileTrainLogger(str(path)), plots=False)
    assert path.read_text() == f"epoch: 1\n{report.table()}\n"


def test_other_loggers_get_values(report, tmp_path):
    train_logger = StatsLogger()
    report.publish(tmp_path, train_logger, plots=False)
    assert train_logger.stats == [({}, logged_values(report.to_dict()))]


def test_a_logger_that_refuses_is_a_warning(report, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        report.publish(tmp_path, BrokenLogger(), plots=False)
    assert "BrokenLogger (ConnectionError: no network)" in caplog.text
    assert (tmp_path / "report.json").is_file()


@pytest.mark.parametrize("train_logger", [None, object(), {"a": 1}])
def test_what_is_no_logger_is_left_alone(
    report, tmp_path, train_logger, caplog
):
    report.publish(tmp_path, train_logger, plots=False)
    assert "could not be passed" not in caplog.text


def test_without_plots_there_is_no_page(report, tmp_path):
    report.publish(tmp_path, plots=False)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.json", "histograms.json", "items.json"}


def test_a_page_that_fails_loses_nothing(report, tmp_path, caplog):
    (tmp_path / "report.html").mkdir()  # cannot be written
    path = tmp_path / "train_log.txt"
    report.publish(tmp_path, FileTrainLogger(str(path)))
    assert "report.html could not be made (IsADirectoryError" in caplog.text
    assert (tmp_path / "report.json").is_file()
    assert report.table() in path.read_text()
