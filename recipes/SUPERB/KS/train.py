#!/usr/bin/env python3
"""Recipe for classifying utterances with a frozen encoder: keywords, speakers.

As in SUPERB: a weighted sum of the encoder's layers, a projection, the mean
over time and a linear layer. All of these are linear, so the mean is taken
first and nothing but the mean of each layer is kept of an utterance.

To run this recipe, do the following:
> python train.py hparams/keywords.yaml --data_folder /path/to/speech_commands --encoder_source microsoft/wavlm-base

The preparation of the data is chosen in the YAML (``prepare_data``).
"""

import os
import sys

import speechbrain as sb
from downstream import load_splits
from hyperpyyaml import load_hyperpyyaml
from reporting import error_items, report_result, write_predictions
from speechbrain.utils.distributed import if_main_process, run_on_main


class Classifier(sb.Brain):
    """Class for training a linear head on a frozen encoder."""

    def compute_forward(self, batch, stage):
        """Scores of the classes."""
        batch = batch.to(self.device)
        mixed = self.modules.weighted_sum(batch.feats.data)
        return self.modules.classifier(self.modules.projector(mixed))[:, 0]

    def compute_objectives(self, predictions, batch, stage):
        """Computes the cross entropy and notes what was right."""
        if stage != sb.Stage.TRAIN:
            encoder = self.hparams.label_encoder
            # There may be more outputs than labels
            best = predictions[:, : len(encoder)].argmax(-1)
            labels = encoder.decode_ndim(best)
            self.rows += list(zip(batch.id, batch.label, labels))
        return self.hparams.compute_cost(predictions, batch.label_id.data[:, 0])

    def on_stage_start(self, stage, epoch=None):
        """Gets called at the beginning of each stage."""
        self.rows = []

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Gets called at the end of each stage."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        items = error_items(self.rows)
        error = 100 * sum(item.errors for item in items) / len(items)
        stats = {"loss": stage_loss, "error": error}
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(stats["loss"])
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": old_lr},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"error": error}, min_keys=["error"]
            )
        elif stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )
            if if_main_process():
                write_predictions(self.hparams.predictions_file, self.rows)
                report_result(self.hparams.result_file, "accuracy", items)


def dataio_prepare(hparams):
    """Creates the datasets and the encoding of the labels."""
    datasets = load_splits(hparams)
    encoder = hparams["label_encoder"]

    @sb.utils.data_pipeline.takes("label")
    @sb.utils.data_pipeline.provides("label", "label_id")
    def label_pipeline(label):
        yield label
        yield encoder.encode_sequence_torch([label])

    sb.dataio.dataset.add_dynamic_item(datasets, label_pipeline)
    encoder.load_or_create(
        path=os.path.join(hparams["save_folder"], "label_encoder.txt"),
        # A part of the training set may lack one
        from_didatasets=datasets,
        output_key="label",
    )
    encoder.expect_len(len(encoder))
    if len(encoder) > hparams["out_n_neurons"]:
        raise ValueError(
            f"out_n_neurons is {hparams['out_n_neurons']}, but the CSV files "
            f"have {len(encoder)} labels: set out_n_neurons to that."
        )
    sb.dataio.dataset.set_output_keys(
        datasets, ["id", "feats", "label", "label_id"]
    )
    return datasets


if __name__ == "__main__":
    # CLI:
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])

    # create ddp_group with the right communication protocol
    sb.utils.distributed.ddp_init_group(run_opts)

    # The YAML names a preparation script that lies beside this one. Where
    # this one is a link, Python looks beside its target.
    sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
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
    train_data, valid_data, test_data = dataio_prepare(hparams)

    # Brain class initialization
    classifier = Classifier(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    hparams["encoder"].to(classifier.device)

    # Training
    classifier.fit(
        classifier.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs=hparams["train_dataloader_opts"],
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # Testing
    classifier.evaluate(
        test_data,
        test_loader_kwargs=hparams["test_dataloader_opts"],
        min_key="error",
    )
