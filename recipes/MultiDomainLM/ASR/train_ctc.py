#!/usr/bin/env python3
"""Recipe for training a small CTC recogniser on synthetic speech.

Its tokens are those of a language model, so that the two can be fused. A second
CTC loss, over letters, in the middle of the encoder finds out sooner where the
letters are; it is not used for recognition.

To run this recipe, do the following:
> python train_ctc.py hparams/ctc_synthetic.yaml --data_folder lm_text \
    --tokenizer_file <common LM>/save/1000_unigram.model
"""

import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import run_on_main


def encode(modules, feats, wav_lens):
    """Runs the encoder.

    Arguments
    ---------
    modules : dict or torch.nn.ModuleDict
        The modules of the recipe.
    feats : torch.Tensor
        (batch, time, features).
    wav_lens : torch.Tensor
        Relative lengths.

    Returns
    -------
    logits : torch.Tensor
        (batch, time / 4, tokens).
    middle : torch.Tensor
        (batch, time / 4, neurons), what the letters are read from.
    """
    feats = modules["normalize"](feats, wav_lens)
    hidden = modules["frontend"](feats)
    hidden = hidden.reshape(*hidden.shape[:2], -1)
    middle, _ = modules["lower"](hidden, lengths=wav_lens)
    upper, _ = modules["upper"](middle, lengths=wav_lens)
    # A sum over paths needs the range of float32
    return modules["ctc_lin"](upper).float(), middle


# Define training procedure
class CTC(sb.Brain):
    def compute_forward(self, batch, stage):
        """Forward computations from the waveform batches to the output probabilities."""
        batch = batch.to(self.device)
        wavs, wav_lens = batch.sig
        feats = self.hparams.compute_features(wavs)
        logits, middle = encode(self.modules, feats, wav_lens)
        p_letters = None
        if stage == sb.Stage.TRAIN:
            p_letters = self.modules.letters_lin(middle).float()
            p_letters = self.hparams.log_softmax(p_letters)
        return self.hparams.log_softmax(logits), p_letters, wav_lens

    def compute_objectives(self, predictions, batch, stage):
        """Computes the CTC loss; in training also that of the letters."""
        p_ctc, p_letters, wav_lens = predictions
        loss = self.hparams.ctc_cost(
            p_ctc, batch.tokens[0], wav_lens, batch.tokens[1]
        )
        if stage == sb.Stage.TRAIN:
            letters, letter_lens = batch.letters
            weight = self.hparams.letters_weight
            cost = self.hparams.ctc_cost(
                p_letters, letters, wav_lens, letter_lens
            )
            return (1 - weight) * loss + weight * cost
        tokens = sb.decoders.ctc_greedy_decode(
            p_ctc, wav_lens, blank_id=self.hparams.blank_index
        )
        hyps = [self.hparams.tokenizer.decode_ids(t).split() for t in tokens]
        self.wer_metric.append(batch.id, hyps, [w.split() for w in batch.wrd])
        return loss

    def on_stage_start(self, stage, epoch):
        """Gets called at the beginning of each epoch."""
        if stage != sb.Stage.TRAIN:
            self.wer_metric = self.hparams.error_rate_computer()

    def on_stage_end(self, stage, stage_loss, epoch):
        """Gets called at the end of an epoch."""
        if stage == sb.Stage.TRAIN:
            self.train_loss = stage_loss
            return
        stats = {
            "loss": stage_loss,
            "WER": self.wer_metric.summarize("error_rate"),
        }
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(epoch)
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": old_lr},
                train_stats={"loss": self.train_loss},
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"WER": stats["WER"]}, min_keys=["WER"]
            )
        else:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )


def dataio_prepare(hparams):
    """This function prepares the datasets to be used in the brain class.
    It also defines the data processing pipeline through user-defined functions.
    """
    from_csv = sb.dataio.dataset.DynamicItemDataset.from_csv
    datasets = [
        from_csv(hparams[f"{split}_csv"]).filtered_sorted(sort_key="duration")
        for split in ("train", "valid", "test")
    ]
    tokenizer = hparams["tokenizer"]
    alphabet = hparams["alphabet"]

    @sb.utils.data_pipeline.takes("wav")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav):
        return sb.dataio.dataio.read_audio(wav)

    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("wrd", "tokens", "letters")
    def text_pipeline(wrd):
        yield wrd
        yield torch.LongTensor(tokenizer.encode_as_ids(wrd))
        # 0 is the blank; a character that is not listed counts as a space
        yield torch.LongTensor([max(alphabet.find(c), 0) + 1 for c in wrd])

    for pipeline in (audio_pipeline, text_pipeline):
        sb.dataio.dataset.add_dynamic_item(datasets, pipeline)
    sb.dataio.dataset.set_output_keys(
        datasets, ["id", "sig", "wrd", "tokens", "letters"]
    )
    sampler = DynamicBatchSampler(
        datasets[0],
        length_func=lambda x: x["duration"],
        **hparams["dynamic_batch_sampler"],
    )
    return (*datasets, {"batch_sampler": sampler})


if __name__ == "__main__":
    # CLI:
    hparams_file, run_opts, overrides = sb.parse_arguments(sys.argv[1:])
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides)

    # Create experiment directory
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    run_on_main(hparams["prepare_data"])
    hparams["pretrainer"].collect_files()
    hparams["pretrainer"].load_collected()
    train_data, valid_data, test_data, train_loader_opts = dataio_prepare(
        hparams
    )

    # Trainer initialization
    brain = CTC(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )

    # Training
    brain.fit(
        brain.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs=train_loader_opts,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # Testing
    brain.evaluate(
        test_data,
        min_key="WER",
        test_loader_kwargs=hparams["valid_dataloader_opts"],
    )
