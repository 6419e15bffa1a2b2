#!/usr/bin/env python3
"""Recipe for training a language model on text.

The same script trains a common model, fine-tunes it on a domain, or trains
what `MultiDomainLM` adds for a domain: the YAML says which.

To run this recipe, do the following:
> python train.py hparams/<model>.yaml --data_folder /path/to/text
"""

import os
import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio.dataio import length_to_mask
from speechbrain.dataio.sampler import DynamicBatchSampler
from speechbrain.utils.distributed import if_main_process, run_on_main
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


# Define training procedure
class LM(sb.Brain):
    teacher = None

    def compute_forward(self, batch, stage):
        """Forward computations from the sentence batches to the output probabilities."""
        batch = batch.to(self.device)
        tokens_bos, _ = batch.tokens_bos
        logits = self.modules.model(tokens_bos)
        log_probs = self.hparams.log_softmax(logits.float())
        if stage != sb.Stage.TRAIN or self.teacher is None:
            return log_probs, None
        with torch.no_grad():
            logits = self.teacher(tokens_bos)
        return log_probs, self.hparams.log_softmax(logits.float())

    def compute_objectives(self, predictions, batch, stage):
        """Computes the loss of a token, averaged over the batch.

        With a teacher it is, for the most part, the distance of its
        probabilities (Hinton et al., arXiv 1503.02531).
        """
        log_probs, teacher_log_probs = predictions
        tokens_eos, tokens_len = batch.tokens_eos
        if stage != sb.Stage.TRAIN:
            self.perplexity.append(
                batch.id, log_probs, tokens_eos, batch.wrd, tokens_len
            )
        loss = self.hparams.compute_cost(
            log_probs, tokens_eos, length=tokens_len
        )
        if teacher_log_probs is None:
            return loss
        distance = torch.nn.functional.kl_div(
            log_probs, teacher_log_probs, reduction="none", log_target=True
        ).sum(-1)
        lengths = torch.round(tokens_len * tokens_eos.shape[1])
        inside = length_to_mask(lengths, tokens_eos.shape[1])
        distance = (distance * inside).sum() / inside.sum()
        weight = self.hparams.distillation_weight
        return (1 - weight) * loss + weight * distance

    def on_stage_start(self, stage, epoch):
        """Gets called at the beginning of each epoch."""
        if stage != sb.Stage.TRAIN:
            self.perplexity = self.hparams.perplexity_computer()

    def on_stage_end(self, stage, stage_loss, epoch):
        """Gets called at the end of an epoch."""
        if stage == sb.Stage.TRAIN:
            self.train_stats = {"loss": stage_loss}
            return
        stats = {k: self.perplexity.summarize(k) for k in ("PPL", "BPC")}
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(epoch)
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": old_lr},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"PPL": stats["PPL"]}, min_keys=["PPL"]
            )
        elif stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )
            if if_main_process():
                with open(
                    self.hparams.perplexity_file, "w", encoding="utf-8"
                ) as w:
                    self.perplexity.write_stats(w)


def dataio_prepare(hparams):
    """This function prepares the datasets to be used in the brain class.
    It also defines the data processing pipeline through user-defined functions.
    """
    from_csv = sb.dataio.dataset.DynamicItemDataset.from_csv
    train_data = from_csv(hparams["train_csv"])
    valid_data = from_csv(hparams["valid_csv"]).filtered_sorted(
        sort_key="duration"
    )
    test_datasets = {
        name: from_csv(csv_file).filtered_sorted(sort_key="duration")
        for name, csv_file in hparams["test_csv"].items()
    }
    datasets = [train_data, valid_data, *test_datasets.values()]
    tokenizer = hparams["tokenizer"]

    # Define text pipeline:
    @sb.utils.data_pipeline.takes("wrd")
    @sb.utils.data_pipeline.provides("wrd", "tokens_bos", "tokens_eos")
    def text_pipeline(wrd):
        yield wrd
        tokens = tokenizer.encode_as_ids(wrd)
        yield torch.LongTensor([hparams["bos_index"], *tokens])
        yield torch.LongTensor([*tokens, hparams["eos_index"]])

    sb.dataio.dataset.add_dynamic_item(datasets, text_pipeline)
    sb.dataio.dataset.set_output_keys(
        datasets, ["id", "wrd", "tokens_bos", "tokens_eos"]
    )

    # Batches of a total length instead of a number of sentences
    sampler = DynamicBatchSampler(
        train_data,
        length_func=lambda x: x["duration"],
        **hparams["dynamic_batch_sampler"],
    )
    return train_data, valid_data, test_datasets, {"batch_sampler": sampler}


def recover_best(checkpointer):
    """Loads the best checkpoint of another experiment."""
    if checkpointer.recover_if_possible(min_key="PPL") is None:
        raise FileNotFoundError(
            f"No checkpoint to start from in {checkpointer.checkpoints_dir}: "
            "train that language model first."
        )


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

    # The tokenizer is trained on the text, or is a file that there is already
    if "train_tokenizer" in hparams:
        run_on_main(hparams["train_tokenizer"])

    # Tokenizer, and weights to start from where the YAML has any
    hparams["pretrainer"].collect_files()
    hparams["pretrainer"].load_collected()
    for key in ("start_from", "teacher_from"):
        if key in hparams:
            recover_best(hparams[key])

    # here we create the datasets objects as well as tokenization and encoding
    train_data, valid_data, test_datasets, train_loader_opts = dataio_prepare(
        hparams
    )

    # Trainer initialization
    lm_brain = LM(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )

    if "teacher" in hparams:
        teacher = hparams["teacher"].to(lm_brain.device)
        lm_brain.teacher = teacher.eval().requires_grad_(False)

    # Training
    lm_brain.fit(
        lm_brain.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs=train_loader_opts,
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # Testing
    for name, test_data in test_datasets.items():
        lm_brain.hparams.perplexity_file = os.path.join(
            hparams["output_folder"], f"perplexity_{name}.txt"
        )
        lm_brain.evaluate(
            test_data,
            min_key="PPL",
            test_loader_kwargs=hparams["test_dataloader_opts"],
        )

    # What a domain adds goes into a file of its own
    if "domain_file" in hparams:
        hparams["checkpointer"].recover_if_possible(min_key="PPL")
        run_on_main(
            hparams["model"].save_domain,
            args=[hparams["domain"], hparams["domain_file"]],
        )
