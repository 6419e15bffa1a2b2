#!/usr/bin/env python3
"""Recipe for speaker verification with a trained model, float or quantized.

The model is loaded with SpeechBrain's own interface, so `source` may be a
folder published by this recipe, a name on the hub, or a checkpoint folder.

To run this recipe, do the following:
> python speaker_verification.py hparams/verification_ecapa.yaml --data_folder /path/to/VoxCeleb --source speechbrain/spkrec-ecapa-voxceleb
"""

import random
import sys
from pathlib import Path

import speechbrain as sb
import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.dataio import audio_io
from speechbrain.inference.speaker import SpeakerRecognition
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import FileTrainLogger
from tqdm import tqdm
from voxceleb_prepare import find_test_utterances

from speechbrain_stablequant import accelerate, read_header, runtime_report
from speechbrain_stablequant.errors import CheckpointError
from speechbrain_stablequant.metrics.verification import VerificationStats

logger = get_logger(__name__)

INFERENCE_FILE = Path(__file__).resolve().parent / "hparams" / "inference.yaml"
WEIGHTS = "embedding_model.ckpt"


def load_model(hparams, run_opts):
    """Loads a model with ``from_hparams``, from wherever it is."""
    source, folder = hparams["source"], Path(hparams["source"])
    if not folder.is_dir():
        if source.count("/") != 1 and "://" not in source:
            raise FileNotFoundError(
                f"source {source} is not a folder, nor a name on the hub "
                "(user/repository)."
            )
        return SpeakerRecognition.from_hparams(source, run_opts=run_opts)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"source {source} has no {WEIGHTS}. Give a published folder, or "
            "of a trained experiment save/CKPT+... or ptq/checkpoint."
        )
    if (folder / "hyperparams.yaml").is_file():
        return SpeakerRecognition.from_hparams(source, run_opts=run_opts)
    pretrainer = {"paths": {"embedding_model": str(folder / WEIGHTS)}}
    if not is_quantized(folder / WEIGHTS):
        pretrainer["custom_hooks"] = None
    return SpeakerRecognition.from_hparams(
        source=str(INFERENCE_FILE.parent),
        hparams_file=INFERENCE_FILE.name,
        overrides={"channels": hparams["channels"], "pretrainer": pretrainer},
        overrides_must_match=False,
        run_opts=run_opts,
    )


def is_quantized(path):
    """Whether a checkpoint file is one of ours; SpeechBrain's is a pickle."""
    try:
        read_header(path)
    except CheckpointError:
        return False
    return True


def dataio_prep(wavs, hparams):
    """Creates a loader of utterances: their files by name."""
    limit = hparams["max_seconds"]
    found = {utt: audio_io.info(str(wav)) for utt, wav in wavs.items()}
    frames = {
        utt: (
            meta.num_frames
            if limit is None
            else min(meta.num_frames, int(limit * meta.sample_rate))
        )
        for utt, meta in found.items()
    }
    # Utterances of about the same length go into a batch
    data = sb.dataio.dataset.DynamicItemDataset(
        {
            utt: {"wav": str(wavs[utt]), "frames": frames[utt]}
            for utt in sorted(wavs, key=frames.get)
        }
    )

    @sb.utils.data_pipeline.takes("wav", "frames")
    @sb.utils.data_pipeline.provides("sig")
    def audio_pipeline(wav, frames):
        return audio_io.load(wav, num_frames=frames)[0].squeeze(0)

    sb.dataio.dataset.add_dynamic_item([data], audio_pipeline)
    sb.dataio.dataset.set_output_keys([data], ["id", "sig"])
    return sb.dataio.dataloader.make_dataloader(
        data, **hparams["dataloader_opts"]
    )


def draw_cohort(hparams):
    """Draws impostors from a list of training utterances, where needed."""
    if hparams["score_norm"] is None:
        return {}
    annotation = hparams["cohort_annotation"]
    if annotation is None:
        raise ValueError(
            f"score_norm {hparams['score_norm']} needs impostors: set "
            "cohort_annotation to the train.csv of the model's training."
        )
    rows = sb.dataio.dataio.load_data_csv(annotation)
    count = min(hparams["cohort_utterances"], len(rows))
    chosen = random.Random(hparams["seed"]).sample(sorted(rows), count)
    return {utt: rows[utt]["wav"] for utt in chosen}


def verify(hparams, model, progress=True):
    """Embeds trials and cohort; returns the metric, filled with them."""
    root = Path(hparams["data_folder"]) / "wav"
    trials = hparams["verification_file"]
    test = find_test_utterances(hparams["data_folder"], trials)
    cohort = draw_cohort(hparams)
    stats = VerificationStats(
        trials,
        score_norm=hparams["score_norm"],
        cohort=list(cohort) or None,
        cohort_size=hparams["cohort_size"],
    )
    wavs = {**cohort, **{utt: root / utt for utt in test}}
    loader = dataio_prep(wavs, hparams)
    for batch in tqdm(
        loader, desc="Embeddings", dynamic_ncols=True, disable=not progress
    ):
        with torch.no_grad():
            stats.append(batch.id, model.encode_batch(*batch.sig))
    return stats


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

    model = load_model(hparams, run_opts)
    if hparams["runtime"] != "reference":
        accelerate(model, hparams["runtime"], hparams["runtime_threads"])
    stats = verify(hparams, model, not run_opts.noprogressbar)

    FileTrainLogger(hparams["log_file"]).log_stats(
        stats_meta={"source": hparams["source"]}, test_stats=stats.summarize()
    )
    for name, (metric, items) in stats.quantization_metrics().items():
        rate = metric.interval(items)
        logger.info(
            f"{name} {rate.value:.4g}, 95 % interval over speakers "
            f"[{rate.low:.4g}, {rate.high:.4g}]"
        )
    stats.write_scores(hparams["scores_file"])
    if hparams["runtime"] != "reference":
        logger.info(runtime_report(model).summary())
