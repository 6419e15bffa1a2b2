#!/usr/bin/env python3
"""Recipe for training speaker embeddings (ECAPA-TDNN) and quantizing them.

After training, the float model is tested on the verification list, then
quantized under a budget of equal error rate and tested again.

To run this recipe, do the following:
> python train_speaker_embeddings.py hparams/train_ecapa_tdnn_1024.yaml --data_folder /path/to/VoxCeleb

Unlike SpeechBrain's script of the same name it validates on trials over
speakers that training never sees, in whole utterances, and calls `evaluate`.
"""

import os
import random
import sys

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio import audio_io
from speechbrain.utils.distributed import if_main_process, run_on_main


class SpeakerBrain(sb.Brain):
    """Class for speaker embedding training."""

    def compute_forward(self, batch, stage):
        """Speaker scores in training, embeddings otherwise."""
        batch = batch.to(self.device)
        wavs, lens = batch.sig
        if stage == sb.Stage.TRAIN and hasattr(self.hparams, "wav_augment"):
            wavs, lens = self.hparams.wav_augment(wavs, lens)
        feats = self.modules.compute_features(wavs)
        feats = self.modules.mean_var_norm(feats, lens)
        if stage == sb.Stage.TRAIN:
            embeddings = self.modules.embedding_model(feats)
            return self.modules.classifier(embeddings), lens
        return self.modules.embedding_model(feats, lens), lens

    def compute_objectives(self, predictions, batch, stage):
        """AAM-softmax in training; otherwise embeddings are collected."""
        predictions, lens = predictions
        if stage != sb.Stage.TRAIN:
            self.verification_stats.append(batch.id, predictions)
            # Unseen speakers have no class, so there is no loss
            return torch.zeros(())
        spk_id, _ = batch.spk_id_encoded
        if hasattr(self.hparams, "wav_augment"):
            spk_id = self.hparams.wav_augment.replicate_labels(spk_id)
        loss = self.hparams.compute_cost(predictions, spk_id, lens)
        if hasattr(self.hparams.lr_annealing, "on_batch_end"):
            self.hparams.lr_annealing.on_batch_end(self.optimizer)
        return loss

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
        summary = self.verification_stats.summarize()
        stats = {name: summary[name] for name in ("EER", "minDCF")}
        if stage == sb.Stage.VALID:
            old_lr, new_lr = self.hparams.lr_annealing(epoch)
            sb.nnet.schedulers.update_learning_rate(self.optimizer, new_lr)
            self.hparams.train_logger.log_stats(
                stats_meta={"epoch": epoch, "lr": old_lr},
                train_stats=self.train_stats,
                valid_stats=stats,
            )
            self.checkpointer.save_and_keep_only(
                meta={"EER": stats["EER"]}, min_keys=["EER"]
            )
        elif stage == sb.Stage.TEST:
            self.hparams.train_logger.log_stats(
                stats_meta={"Epoch loaded": self.hparams.epoch_counter.current},
                test_stats=stats,
            )
            if if_main_process():
                self.verification_stats.write_scores(self.hparams.scores_file)


def dataio_prep(hparams):
    """Creates the datasets and their data processing pipelines."""
    train_data, valid_data, test_data = (
        sb.dataio.dataset.DynamicItemDataset.from_csv(
            csv_path=hparams[f"{split}_annotation"]
        )
        for split in ("train", "valid", "test")
    )
    chunk = int(hparams["sample_rate"] * hparams["sentence_len"])
    label_encoder = sb.dataio.encoder.CategoricalEncoder()

    @sb.utils.data_pipeline.takes("wav", "duration")
    @sb.utils.data_pipeline.provides("sig")
    def random_chunk(wav, duration):
        frames = int(float(duration) * hparams["sample_rate"])
        start = random.randint(0, max(0, frames - chunk))
        sig, _ = audio_io.load(wav, num_frames=chunk, frame_offset=start)
        sig = sig.squeeze(0)
        # A short recording is repeated, so that all chunks are as long
        return sig.repeat(-(-chunk // len(sig)))[:chunk]

    @sb.utils.data_pipeline.takes("wav", "start", "stop")
    @sb.utils.data_pipeline.provides("sig")
    def whole(wav, start, stop):
        start, stop = int(start), int(stop)
        sig, _ = audio_io.load(wav, num_frames=stop - start, frame_offset=start)
        return sig.squeeze(0)

    @sb.utils.data_pipeline.takes("spk_id")
    @sb.utils.data_pipeline.provides("spk_id", "spk_id_encoded")
    def label_pipeline(spk_id):
        yield spk_id
        yield label_encoder.encode_sequence_torch([spk_id])

    sb.dataio.dataset.add_dynamic_item([train_data], random_chunk)
    sb.dataio.dataset.add_dynamic_item([valid_data, test_data], whole)
    sb.dataio.dataset.add_dynamic_item([train_data], label_pipeline)
    label_encoder.load_or_create(
        path=os.path.join(hparams["save_folder"], "label_encoder.txt"),
        from_didatasets=[train_data],
        output_key="spk_id",
    )
    if len(label_encoder) != hparams["out_n_neurons"]:
        raise ValueError(
            f"out_n_neurons is {hparams['out_n_neurons']}, but there are "
            f"{len(label_encoder)} speakers in {hparams['train_annotation']}: "
            "set num_speakers to that plus dev_speakers."
        )
    sb.dataio.dataset.set_output_keys(
        [train_data], ["id", "sig", "spk_id_encoded"]
    )
    sb.dataio.dataset.set_output_keys([valid_data, test_data], ["id", "sig"])
    # Utterances of about the same length go into a batch
    return (
        train_data,
        valid_data.filtered_sorted(sort_key="duration"),
        test_data.filtered_sorted(sort_key="duration"),
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

    # Trials, noises and impulse responses are downloaded where the YAML says so
    for step in (
        "prepare_trials",
        "prepare_data",
        "prepare_noise_data",
        "prepare_rir_data",
    ):
        if step in hparams:
            run_on_main(hparams[step])

    # Dataset IO prep: creating Dataset objects and proper encodings for speakers
    train_data, valid_data, test_data = dataio_prep(hparams)

    # Brain class initialization
    speaker_brain = SpeakerBrain(
        modules=hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )

    # Training
    speaker_brain.fit(
        speaker_brain.hparams.epoch_counter,
        train_data,
        valid_data,
        train_loader_kwargs=hparams["train_dataloader_opts"],
        valid_loader_kwargs=hparams["valid_dataloader_opts"],
    )

    # Verification: of the float model, then of the quantized one
    speaker_brain.evaluate(
        test_data,
        test_loader_kwargs=hparams["test_dataloader_opts"],
        min_key="EER",
    )
