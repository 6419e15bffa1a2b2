#!/usr/bin/env python3
"""Recipe for training a CTC speech recognizer on a wav2vec 2.0, HuBERT or
WavLM encoder, pretrained or from scratch, with characters as tokens.

Validation decodes greedily. Testing decodes with SpeechBrain's
CTCBeamSearcher where the YAML has ``test_beam_search``, else greedily.

To run this recipe, do the following:
> python train.py hparams/<model>.yaml --data_folder /path/to/data

The preparation of the data is chosen in the YAML (``prepare_data``), so other
data sets use this same script.
"""

import os
import sys
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.decoders.ctc import CTCBeamSearcher
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


# Define training procedure
class ASR(sb.Brain):
    test_searcher = None

    def compute_forward(self, batch, stage):
        """Forward computations from the waveform batches to the output probabilities."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig

        # Add waveform augmentation if specified.
        if stage == sb.Stage.TRAIN and hasattr(self.hparams, "wav_augment"):
            wavs, wav_lens = self.hparams.wav_augment(wavs, wav_lens)

        # Forward pass
        feats = self.modules.wav2vec2(wavs, wav_lens)
        if hasattr(self.modules, "enc"):
            feats = self.modules.enc(feats)
        logits = self.modules.ctc_lin(feats)
        p_ctc = self.hparams.log_softmax(logits)

        hyps = None
        if stage == sb.Stage.TEST and self.test_searcher is not None:
            beams = self.test_searcher(p_ctc, wav_lens)
            hyps = [beam[0].text.split() for beam in beams]
        elif stage != sb.Stage.TRAIN:
            tokens = sb.decoders.ctc_greedy_decode(
                p_ctc, wav_lens, blank_id=self.hparams.blank_index
            )
            hyps = [
                "".join(self.tokenizer.decode_ndim(seq)).split()
                for seq in tokens
            ]
        return p_ctc, wav_lens, hyps

    def compute_objectives(self, predictions, batch, stage):
        """Computes the CTC loss given predictions and targets."""
        p_ctc, wav_lens, hyps = predictions
        tokens, tokens_lens = batch.tokens

        # Labels must be extended if parallel augmentation or concatenated
        # augmentation was performed on the input (increasing the batch)
        if stage == sb.Stage.TRAIN and hasattr(self.hparams, "wav_augment"):
            augment = self.hparams.wav_augment
            tokens, tokens_lens = augment.replicate_multiple_labels(
                tokens, tokens_lens
            )

        if stage != sb.Stage.TRAIN:
            targets = [wrd.split() for wrd in batch.wrd]
            self.wer_metric.append(batch.id, hyps, targets)
            # Characters are those of the sentence, spaces included
            self.cer_metric.append(
                batch.id,
                [list(" ".join(hyp)) for hyp in hyps],
                [list(" ".join(target)) for target in targets],
            )
        return self.hparams.ctc_cost(p_ctc, tokens, wav_lens, tokens_lens)

    def on_stage_start(self, stage, epoch):
        """Gets called at the beginning of each epoch."""
        if stage != sb.Stage.TRAIN:
            self.cer_metric = self.hparams.cer_computer()
            self.wer_metric = self.hparams.error_rate_computer()

    def on_stage_end(self, stage, stage_loss, epoch):
        """Gets called at the end of an epoch."""
        # Compute/store important stats
        stage_stats = {"loss": stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stage_stats
        else:
            stage_stats["CER"] = self.cer_metric.summarize("error_rate")
            stage_stats["WER"] = self.wer_metric.summarize("error_rate")

        # Perform end-of-iteration things, like annealing, logging, etc.
        if stage == sb.Stage.VALID:
            old_lr_model, new_lr_model = self.hparams.lr_annealing_model(
                stage_stats["loss"]
            )
            old_lr_wav2vec, new_lr_wav2vec = self.hparams.lr_annealing_wav2vec(
                stage_stats["loss"]
            )
            sb.nnet.schedulers.update_learning_rate(
                self.model_optimizer, new_lr_model
            )
            sb.nnet.schedulers.update_learning_rate(
                self.wav2vec_optimizer, new_lr_wav2vec
            )
            self.hparams.train_logger.log_stats(
                stats_meta={
                    "epoch": epoch,
                    "lr_model": old_lr_model,
                    "lr_wav2vec": old_lr_wav2vec,
                },
                train_stats=self.train_stats,
                valid_stats=stage_stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"WER": stage_stats["WER"]}, min_keys=["WER"]
            )
        elif stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stage_stats,
            )
            if if_main_process():
                with open(
                    self.hparams.test_wer_file, "w", encoding="utf-8"
                ) as w:
                    self.wer_metric.write_stats(w)

    def init_optimizers(self):
        """Initializes the wav2vec2 optimizer and model optimizer."""
        self.wav2vec_optimizer = self.hparams.wav2vec_opt_class(
            self.modules.wav2vec2.parameters()
        )
        self.model_optimizer = self.hparams.model_opt_class(
            self.hparams.model.parameters()
        )
        self.optimizers_dict = {"model_optimizer": self.model_optimizer}
        if not self.hparams.freeze_wav2vec:
            self.optimizers_dict["wav2vec_optimizer"] = self.wav2vec_optimizer

        if self.checkpointer is not None:
            self.checkpointer.add_recoverable(
                "wav2vec_opt", self.wav2vec_optimizer
            )
            self.checkpointer.add_recoverable("modelopt", self.model_optimizer)


def dataio_prepare(hparams):
    """This function prepares the datasets to be used in the brain class.
    It also defines the data processing pipeline through user-defined functions.
    """
    from_csv = sb.dataio.dataset.DynamicItemDataset.from_csv
    replacements = {"data_root": hparams["data_folder"]}

    # 1. Datasets
    train_data = from_csv(hparams["train_csv"], replacements)
    if hparams["sorting"] in ("ascending", "descending"):
        # we sort training data to speed up training and get better results.
        train_data = train_data.filtered_sorted(
            sort_key="duration", reverse=hparams["sorting"] == "descending"
        )
        # when sorting do not shuffle in dataloader ! otherwise is pointless
        hparams["train_dataloader_opts"]["shuffle"] = False
    elif hparams["sorting"] != "random":
        raise NotImplementedError(
            "sorting must be random, ascending or descending"
        )
    valid_data = from_csv(hparams["valid_csv"], replacements)
    valid_data = valid_data.filtered_sorted(sort_key="duration")
    test_datasets = {
        Path(csv_file).stem: from_csv(csv_file, replacements).filtered_sorted(
            sort_key="duration"
        )
        for csv_file in hparams["test_csv"]
    }
    datasets = [train_data, valid_data, *test_datasets.values()]

    # 2. Define audio pipeline:
    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    sb.dataio.dataset.add_dynamic_item(datasets, audio_pipeline)

    # 3. Define text pipeline:
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
        # A training file of single words alone would lack the space
        from_didatasets=[train_data, valid_data],
        output_key="char_list",
        special_labels={"blank_label": hparams["blank_index"]},
        sequence_input=True,
    )

    # 4. Set output:
    sb.dataio.dataset.set_output_keys(datasets, ["id", "sig", "wrd", "tokens"])

    # 5. Batches of a total duration instead of a number of utterances
    train_loader_opts = hparams["train_dataloader_opts"]
    if hparams["dynamic_batching"]:
        sampler = DynamicBatchSampler(
            train_data,
            length_func=lambda x: x["duration"],
            **hparams["dynamic_batch_sampler"],
        )
        workers = train_loader_opts.get("num_workers", 0)
        train_loader_opts = {"batch_sampler": sampler, "num_workers": workers}
    return train_data, valid_data, test_datasets, train_loader_opts


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

    # here we create the datasets objects as well as tokenization and encoding
    train_data, valid_data, test_datasets, train_loader_opts = dataio_prepare(
        hparams
    )

    # Weights to start from, where the YAML has any
    if "pretrainer" in hparams:
        hparams["pretrainer"].collect_files()
        hparams["pretrainer"].load_collected()

    # Trainer initialization
    asr_brain = ASR(
        modules=hparams["modules"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )
    asr_brain.tokenizer = hparams["label_encoder"]
    if hparams.get("test_beam_search"):
        ind2lab = asr_brain.tokenizer.ind2lab
        asr_brain.test_searcher = CTCBeamSearcher(
            **hparams["test_beam_search"],
            vocab_list=[ind2lab[x] for x in range(len(ind2lab))],
        )

    # Training
    asr_brain.fit(
        asr_brain.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs=train_loader_opts,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # Testing
    os.makedirs(hparams["output_wer_folder"], exist_ok=True)
    for name, test_data in test_datasets.items():
        asr_brain.hparams.test_wer_file = os.path.join(
            hparams["output_wer_folder"], f"wer_{name}.txt"
        )
        asr_brain.evaluate(
            test_data,
            test_loader_kwargs=hparams["test_dataloader_opts"],
            min_key="WER",
        )
