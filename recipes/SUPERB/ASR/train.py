#!/usr/bin/env python3
"""Recipe for speech recognition with a frozen encoder, as in SUPERB.

A weighted sum of the encoder's layers, a bidirectional LSTM and CTC on
characters, decoded greedily without a language model.

To run this recipe, do the following:
> python train.py hparams/librispeech.yaml --data_folder /path/to/LibriSpeech --encoder_source microsoft/wavlm-base

The preparation of the data is chosen in the YAML (``prepare_data``).
"""

import os
import sys

import speechbrain as sb
import torch
from downstream import load_splits
from hyperpyyaml import load_hyperpyyaml
from reporting import report_result
from speechbrain.utils.distributed import if_main_process, run_on_main

from speechbrain_stablequant.metrics.metric import items_of


class ASR(sb.Brain):
    """Class for training a recognizer on a frozen encoder."""

    def compute_forward(self, batch, stage):
        """Log-probabilities of characters and what they decode to."""
        batch = batch.to(self.device)
        feats, lens = batch.feats
        feats = self.modules.weighted_sum(feats)
        feats, _ = self.modules.rnn(self.hparams.dropout(feats), lengths=lens)
        p_ctc = self.modules.ctc_lin(feats).log_softmax(-1)
        hyps = None
        if stage != sb.Stage.TRAIN:
            tokens = sb.decoders.ctc_greedy_decode(
                p_ctc, lens, blank_id=self.hparams.blank_index
            )
            decode = self.hparams.label_encoder.decode_ndim
            hyps = ["".join(decode(seq)).split() for seq in tokens]
        return p_ctc, lens, hyps

    def compute_objectives(self, predictions, batch, stage):
        """Computes the CTC loss given predictions and targets."""
        p_ctc, lens, hyps = predictions
        tokens, tokens_lens = batch.tokens
        if stage != sb.Stage.TRAIN:
            targets = [wrd.split() for wrd in batch.wrd]
            self.wer_metric.append(batch.id, hyps, targets)
        return self.hparams.ctc_cost(p_ctc, tokens, lens, tokens_lens)

    def on_stage_start(self, stage, epoch=None):
        """Gets called at the beginning of each stage."""
        self.hparams.dropout.train(stage == sb.Stage.TRAIN)
        if stage != sb.Stage.TRAIN:
            self.wer_metric = self.hparams.error_rate_computer()

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Gets called at the end of each stage."""
        stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        stats["WER"] = self.wer_metric.summarize("error_rate")
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(epoch)
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": old_lr},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"WER": stats["WER"]}, min_keys=["WER"]
            )
        elif stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )
            if if_main_process():
                with open(
                    self.hparams.test_wer_file, "w", encoding="utf-8"
                ) as file:
                    self.wer_metric.write_stats(file)
                items = items_of(self.wer_metric)
                report_result(self.hparams.result_file, "WER", items)


def dataio_prepare(hparams):
    """Creates the datasets and their text pipeline."""
    datasets = load_splits(hparams)
    label_encoder = hparams["label_encoder"]

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("wrd", "char_list", "tokens")
    def text_pipeline(wrd):
        yield wrd
        char_list = list(wrd)
        yield char_list
        yield torch.LongTensor(label_encoder.encode_sequence(char_list))

    sb.dataio.dataset.add_dynamic_item(datasets, text_pipeline)
    label_encoder.load_or_create(
        path=os.path.join(hparams["save_folder"], "label_encoder.txt"),
        from_didatasets=datasets[:2],
        output_key="char_list",
        special_labels={"blank_label": hparams["blank_index"]},
        sequence_input=True,
    )
    if len(label_encoder) != hparams["output_neurons"]:
        raise ValueError(
            f"output_neurons is {hparams['output_neurons']}, but there are "
            f"{len(label_encoder)} characters with the blank: set it to that."
        )
    sb.dataio.dataset.set_output_keys(
        datasets, ["id", "feats", "wrd", "tokens"]
    )
    train_data, *rest = datasets
    # Utterances of about the same length go into a batch
    by_length = [data.filtered_sorted(sort_key="duration") for data in rest]
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
    asr_brain = ASR(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    hparams["encoder"].to(asr_brain.device)

    # Training, batches of a total duration
    sampler = sb.dataio.sampler.DynamicBatchSampler(
        train_data,
        length_func=lambda x: float(x["duration"]),
        **hparams["dynamic_batch_sampler"],
    )
    asr_brain.fit(
        asr_brain.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs={
            "batch_sampler": sampler,
            "num_workers": hparams["num_workers"],
        },
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # Testing
    asr_brain.evaluate(
        test_data,
        test_loader_kwargs=hparams["test_dataloader_opts"],
        min_key="WER",
    )
