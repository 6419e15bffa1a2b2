"""Brains that do in a test pass what recipes of SpeechBrain do, and worse."""

import random
from pathlib import Path

import numpy as np
import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import average_checkpoints
from speechbrain.utils.metric_stats import MetricStats

from tests.integration.toy import ToyASR

KEEP = {"num_to_keep": 1}


def output_folder(brain) -> Path:
    return Path(brain.hparams.output_folder)


class Saver(ToyASR):
    """Saves in TEST and prunes all else, as LibriSpeech/transformer does."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST:
            self.checkpointer.save_and_keep_only(
                meta={"ACC": 1.1, "epoch": epoch}, max_keys=["ACC"], **KEEP
            )


class Averager(Saver):
    """Averages checkpoints and loads them strictly before a test pass."""

    def on_evaluate_start(self, max_key=None, min_key=None):
        super().on_evaluate_start(max_key=max_key, min_key=min_key)
        checkpoints = self.checkpointer.find_checkpoints(max_num_checkpoints=5)
        for name in ("wav2vec2", "model"):
            average = average_checkpoints(checkpoints, recoverable_name=name)
            getattr(self.hparams, name).load_state_dict(average, strict=True)


class Recoverer(ToyASR):
    """Loads the best checkpoint once more when the stage starts."""

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TEST:
            self.checkpointer.recover_if_possible(min_key="WER")
            best = self.hparams.checkpointer.find_checkpoint(min_key="WER")
            self.hparams.checkpointer.load_checkpoint(best)


class Deleter(ToyASR):
    """Deletes checkpoints, by the method and through hparams."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST and self.tests_done():
            self.hparams.checkpointer.delete_checkpoints(**KEEP)

    def tests_done(self):
        return (output_folder(self) / "wer_test-clean.txt").exists()


class Writer(ToyASR):
    """Writes to fixed paths, new and old, in new folders, many times."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST:
            folder = output_folder(self)
            rate = self.wer_metric.summarize("error_rate")
            text = f"{stage_loss!r} {rate!r}\n"
            (folder / "final.txt").write_text(text)
            (folder / "hyps").mkdir(exist_ok=True)
            for scores in self.wer_metric.scores:
                hyp = " ".join(scores["hyp_tokens"])
                (folder / "hyps" / f"{scores['key']}.txt").write_text(hyp)
            np.save(folder / "loss.npy", np.array([stage_loss]))


class Searcher(ToyASR):
    """Decodes through an object of hparams that holds aliases of modules."""

    def compute_forward(self, batch, stage):
        if stage == sb.Stage.TRAIN:
            return super().compute_forward(batch, stage)
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        x = self.hparams.wav2vec2(wavs, lens)
        return self.hparams.searcher(x), lens


class AliasSearcher(torch.nn.Module):
    """Holds the recipe's modules, as beam searchers and scorers do."""

    def __init__(self, modules):
        super().__init__()
        self.parts = torch.nn.ModuleList(modules)
        self.plain = tuple(modules)  # not registered: an ordinary attribute

    def forward(self, x):
        through_parts = self.parts[1](self.parts[0](x))
        weight = self.plain[1].w.weight  # read, not called
        by_hand = torch.nn.functional.linear(
            self.plain[0](x), weight, self.plain[1].w.bias
        )
        return (0.5 * (through_parts + by_hand)).log_softmax(-1)


class Gambler(ToyASR):
    """Draws random numbers of all kinds in a test pass."""

    def on_stage_end(self, stage, stage_loss, epoch=None):
        super().on_stage_end(stage, stage_loss, epoch)
        if stage == sb.Stage.TEST:
            drawn = (torch.rand(()), np.random.rand(), random.random())
            name = Path(self.hparams.test_wer_file).stem
            path = output_folder(self) / f"drawn_{name}.txt"
            path.write_text(" ".join(f"{float(x):.6f}" for x in drawn))


class Interrupted(ToyASR):
    """Stops in the given phase with the given exception, once."""

    phase, error = None, None

    def compute_forward(self, batch, stage):
        if self.error is not None and self._phase(stage) == self.phase:
            error, Interrupted.error = self.error, None
            raise error
        return super().compute_forward(batch, stage)

    def _phase(self, stage):
        quantized = any(
            type(m).__name__.startswith("Quantized")
            for m in self.modules.modules()
        )
        if stage == sb.Stage.TEST:
            return "pass" if quantized else "float pass"
        return "search" if quantized else "calibration"


class Overflowing(ToyASR):
    """Has a metric that is infinite for some utterances."""

    def on_stage_start(self, stage, epoch=None):
        super().on_stage_start(stage, epoch)
        self.ratio_metric = MetricStats(metric=_ratio)

    def compute_objectives(self, predictions, batch, stage):
        self.ratio_metric.append(batch.id, predictions[0])
        return super().compute_objectives(predictions, batch, stage)


def _ratio(predictions):
    return predictions.mean((1, 2)) / torch.arange(len(predictions))
