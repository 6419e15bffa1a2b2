#!/usr/bin/env python3
"""Recipe for compressing a self-supervised encoder with unlabelled speech.

The teacher is frozen. The student is trained to give its hidden states, and
quantized; both students, float and quantized, become folders that
``WaveformEncoder.from_hparams`` and the tasks beside this recipe load.

To run this recipe, do the following:
> python train.py hparams/<student or quantized>.yaml --encoder_source facebook/hubert-base-ls960 --audio_patterns '["/path/to/LibriSpeech/train-*/*/*/*.flac"]'
"""

import json
import os
import sys
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from publish_encoder import CONFIG_FILE, config_of, write_encoder
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import if_main_process, run_on_main


class Distiller(sb.Brain):
    """Class for training a student on the hidden states of a teacher."""

    def compute_forward(self, batch, stage):
        """Hidden states as the student predicts them, and as they are."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        # Not one of the modules, which are trained, quantized and saved
        with torch.no_grad():
            states = self.hparams.teacher.to(self.device)(wavs, wav_lens)
        target = states[self.modules.heads.target_layers]
        states = self.modules.encoder(wavs, wav_lens)
        return self.modules.heads(states), target

    def compute_objectives(self, predictions, batch, stage):
        """The mean of the losses of all target layers."""
        losses = self.hparams.compute_loss(*predictions, batch.sig.lengths)
        if stage != sb.Stage.TRAIN:
            scores = losses.detach()
            self.distance_error_metric.append(batch.id, scores.mean(0))
            self.layer_losses.append(scores.cpu())
        return losses.mean()

    def on_stage_start(self, stage, epoch=None):
        """Gets called at the beginning of each stage."""
        if stage != sb.Stage.TRAIN:
            self.layer_losses = []
            # The quantizer judges by a metric with "error" in its name
            self.distance_error_metric = sb.utils.metric_stats.MetricStats(
                metric=lambda scores: scores
            )

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Gets called at the end of each stage."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        stats = {"loss": self.distance_error_metric.summarize("average")}
        by_layer = torch.cat(self.layer_losses, dim=1).mean(1).tolist()
        for layer, loss in zip(self.modules.heads.target_layers, by_layer):
            stats[f"layer {layer}"] = loss
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(stats["loss"])
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": old_lr},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"loss": stats["loss"]}, min_keys=["loss"]
            )
        elif stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )


def dataio_prepare(hparams):
    """Creates the datasets and the options of the training loader."""
    datasets = [
        sb.dataio.dataset.DynamicItemDataset.from_csv(hparams[f"{split}_csv"])
        for split in ("train", "valid", "test")
    ]
    max_samples = int(hparams["max_seconds"] * hparams["sample_rate"])

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)[:max_samples]

    sb.dataio.dataset.add_dynamic_item(datasets, audio_pipeline)
    sb.dataio.dataset.set_output_keys(datasets, ["id", "sig"])
    train_data, valid_data, test_data = datasets
    sampler = DynamicBatchSampler(
        train_data,
        length_func=lambda x: min(float(x["duration"]), hparams["max_seconds"]),
        **hparams["dynamic_batch_sampler"],
    )
    loader_opts = {
        "batch_sampler": sampler,
        "num_workers": hparams["num_workers"],
    }
    # Utterances of about the same length go into a batch
    return (
        train_data,
        valid_data.filtered_sorted(sort_key="duration"),
        test_data.filtered_sorted(sort_key="duration"),
        loader_opts,
    )


def publish(hparams):
    """Writes the folders that the tasks load."""
    folder = Path(hparams["output_folder"])
    config = json.loads((folder / CONFIG_FILE).read_text())
    best = hparams["checkpointer"].find_checkpoint(min_key="loss")
    for kind, checkpoint in (
        ("float", Path(best.path)),
        ("quantized", folder / "ptq" / "checkpoint"),
    ):
        weights = checkpoint / "encoder.ckpt"
        if weights.is_file():
            write_encoder(config, weights, folder / f"encoder_{kind}")


if __name__ == "__main__":
    # CLI:
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])

    # create ddp_group with the right communication protocol
    sb.utils.distributed.ddp_init_group(run_opts)

    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)

    # Create experiment directory
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )

    # multi-gpu (ddp) save data preparation
    run_on_main(hparams["prepare_data"])
    train_data, valid_data, test_data, loader_opts = dataio_prepare(hparams)

    # Brain class initialization
    distiller = Distiller(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    if if_main_process():
        with open(
            os.path.join(hparams["output_folder"], CONFIG_FILE), "w"
        ) as file:
            json.dump(config_of(hparams["encoder"]), file, indent=1)

    # Training
    distiller.fit(
        distiller.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs=loader_opts,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )
    # Without a float epoch the student is what it started as
    if hparams["checkpointer"].find_checkpoint(min_key="loss") is None:
        hparams["checkpointer"].save_checkpoint(meta={"loss": float("inf")})

    # The distance of the float student, then that of the quantized one
    distiller.evaluate(
        test_data,
        test_loader_kwargs=hparams["test_dataloader_opts"],
        min_key="loss",
    )
    if if_main_process():
        publish(hparams)
