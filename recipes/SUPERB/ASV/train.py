#!/usr/bin/env python3
"""Recipe for speaker verification with a frozen encoder, as in SUPERB.

A weighted sum of the encoder's layers and an x-vector extractor, trained with
softmax on speakers that are in no trial; cosine scores.

To run this recipe, do the following:
> python train.py hparams/xvector.yaml --data_folder /path/to/VoxCeleb --encoder_source microsoft/wavlm-base
"""

import os
import sys

import speechbrain as sb
import torch
from downstream import load_splits
from hyperpyyaml import load_hyperpyyaml
from reporting import report_result
from speechbrain.utils.distributed import if_main_process, run_on_main


class SpeakerBrain(sb.Brain):
    """Class for training speaker embeddings on a frozen encoder."""

    def compute_forward(self, batch, stage):
        """Speaker scores in training, embeddings otherwise."""
        batch = batch.to(self.device)
        feats, lens = batch.feats
        feats = self.modules.projector(self.modules.weighted_sum(feats))
        embeddings = self.modules.embedding_model(feats, lens)
        if stage == sb.Stage.TRAIN:
            return self.modules.classifier(embeddings)
        return embeddings

    def compute_objectives(self, predictions, batch, stage):
        """Cross entropy in training; otherwise embeddings are collected."""
        if stage != sb.Stage.TRAIN:
            self.verification_stats.append(batch.id, predictions)
            # Unseen speakers have no class, so there is no loss
            return torch.zeros(())
        speakers = batch.spk_id_encoded.data[:, 0]
        return self.hparams.compute_cost(predictions[:, 0], speakers)

    def on_stage_start(self, stage, epoch=None):
        """Gets called at the beginning of each stage."""
        if stage == sb.Stage.VALID:
            self.verification_stats = self.hparams.valid_stats()
        if stage == sb.Stage.TEST:
            self.verification_stats = self.hparams.test_stats()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Gets called at the end of each stage."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        stats = {"EER": self.verification_stats.summarize("EER")}
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(stats["EER"])
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": old_lr},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(meta=stats, min_keys=["EER"])
        elif stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )
            if if_main_process():
                found = self.verification_stats.quantization_metrics()
                metric, items = found["EER"]
                report_result(self.hparams.result_file, "EER", items, metric)
                self.verification_stats.write_scores(self.hparams.scores_file)


def dataio_prepare(hparams):
    """Creates the datasets and the encoding of the training speakers."""
    datasets = train_data, valid_data, test_data = load_splits(hparams)
    label_encoder = hparams["label_encoder"]

    @sb.utils.data_pipeline.takes("spk_id")
    @sb.utils.data_pipeline.provides("spk_id", "spk_id_encoded")
    def label_pipeline(spk_id):
        yield spk_id
        yield label_encoder.encode_sequence_torch([spk_id])

    sb.dataio.dataset.add_dynamic_item([train_data], label_pipeline)
    label_encoder.load_or_create(
        path=os.path.join(hparams["save_folder"], "label_encoder.txt"),
        from_didatasets=[train_data],
        output_key="spk_id",
    )
    label_encoder.expect_len(len(label_encoder))
    if len(label_encoder) > hparams["out_n_neurons"]:
        raise ValueError(
            f"out_n_neurons is {hparams['out_n_neurons']}, but there are "
            f"{len(label_encoder)} speakers in {hparams['train_csv']}: set "
            "out_n_neurons to that."
        )
    sb.dataio.dataset.set_output_keys(
        [train_data], ["id", "feats", "spk_id_encoded"]
    )
    sb.dataio.dataset.set_output_keys([valid_data, test_data], ["id", "feats"])
    # Utterances of about the same length go into a batch
    by_length = [d.filtered_sorted(sort_key="duration") for d in datasets[1:]]
    return train_data, *by_length


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
    train_data, valid_data, test_data = dataio_prepare(hparams)

    # Brain class initialization
    speaker_brain = SpeakerBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    hparams["encoder"].to(speaker_brain.device)

    # Training
    speaker_brain.fit(
        speaker_brain.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs=hparams["train_dataloader_opts"],
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # Testing
    speaker_brain.evaluate(
        test_data,
        test_loader_kwargs=hparams["test_dataloader_opts"],
        min_key="EER",
    )
