#!/usr/bin/env python3
"""The main job in minutes: quantize, score, publish, load again.

To run it, do the following:
> python demo.py
> python demo.py --train

It runs the recipe (``train.py hparams/demo.yaml``) on digit strings that
espeak-ng speaks in many voices, makes a folder for a model hub, loads it with
stock SpeechBrain and recognises the test set twice more: by reference execution
and on integer kernels. The float model is the sample in this folder, or with
``--train`` one that is trained first. All further arguments go to the recipe.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from float_sample import restore_sample
from speechbrain.dataio.batch import PaddedData
from speechbrain.dataio.dataio import read_audio
from speechbrain.inference.ASR import EncoderASR
from speechbrain.utils.data_utils import batch_pad_right
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_stablequant import accelerate, runtime_report
from speechbrain_stablequant.publishing import PublishOptions, make_folder

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def use_one_thread() -> None:
    """Compute with one thread, here and in other processes.

    The layers are so small that threads mostly wait for each other. Where
    another program needs one of the cores, each layer waits for that program,
    and OpenMP's busy waiting takes what is left: tens of times as slow.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def run_recipe(folder: Path, train: bool, arguments: list) -> None:
    """Run the recipe: the float pass, quantization, the quantized pass."""
    command = [sys.executable, "train.py", "hparams/demo.yaml"]
    if train:
        # It would otherwise continue behind the last epoch of an earlier run,
        # or train on the one string that a run with the sample has prepared.
        shutil.rmtree(folder / "save", ignore_errors=True)
        for split in ("train", "dev", "test"):
            (folder / f"{split}.csv").unlink(missing_ok=True)
    else:
        restore_sample(folder)
        command += ["--test_only"]
        if not any(a.partition("=")[0] == "--n_strings" for a in arguments):
            # One to train with, since the recipe reads them in any case.
            command += ["--n_strings", "[1, 100, 250]"]
    command += ["--output_folder", str(folder), *arguments]
    subprocess.run(command, cwd=HERE, check=True)


def publish(folder: Path) -> Path:
    """Make the folder for a hub, as ``stablequant publish`` does."""
    options = PublishOptions(language="en", trained_with="make demo TRAIN=1")
    publication = make_folder(folder, options)
    print(f"\nPublishable: {publication.check.line()}")
    return publication.folder.path


def recognise(model: EncoderASR, rows: list, batch_size: int = 32) -> float:
    """Return the WER of a loaded model, in percent."""
    stats = ErrorRateStats()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        waves = [read_audio(row["wav"]) for row in batch]
        signal = PaddedData(*batch_pad_right(waves))
        words, _ = model.transcribe_batch(signal.data, signal.lengths)
        stats.append(
            [row["ID"] for row in batch],
            [text.split() for text in words],
            [row["wrd"].split() for row in batch],
        )
    return stats.summarize("error_rate")


def reload(published: Path, folder: Path) -> None:
    """Load the published model and recognise the test set of the recipe."""
    model = EncoderASR.from_hparams(
        source=str(published), savedir=str(folder / "loaded")
    )
    with open(folder / "test.csv", encoding="utf-8") as file:
        # In the order of the recipe: padding is the same, so the result is.
        rows = sorted(csv.DictReader(file), key=lambda r: float(r["duration"]))
    wer = recognise(model, rows)
    fast_wer = recognise(accelerate(model), rows)

    report = json.loads((folder / "ptq" / "report.json").read_text())
    expected = report["tests"][0]["metrics"]["WER"]["quantized"]
    print(f"Loaded from {published}, {len(rows)} test strings")
    for row in rows[-3:]:
        print(f"  {row['wrd']}  ->  {model.transcribe_file(row['wav'])}")
    print(f"WER of the quantized model in the recipe:  {expected:.2f} %")
    print(f"WER of the same model, loaded from disk:   {wer:.2f} %")
    print(f"WER of the same, after accelerate(model):  {fast_wer:.2f} %")
    print(f"  {runtime_report(model).summary()}")
    # Integer kernels round in another order, so that a few words may differ.
    word = 100 / sum(len(row["wrd"].split()) for row in rows)
    if max(abs(wer - expected), abs(fast_wer - expected)) > 3.5 * word:
        sys.exit("The loaded model does not give the recipe's result.")


def main() -> None:
    """Train if asked to, quantize and score; then publish and load."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--output_folder", type=Path)
    options, arguments = parser.parse_known_args()
    folder = options.output_folder or (
        RESULTS / ("demo" if options.train else "sample") / "1986"
    )
    folder = folder.resolve()

    start = time.time()
    use_one_thread()
    run_recipe(folder, options.train, arguments)
    published = publish(folder)
    reload(published, folder)
    print(
        f"{(time.time() - start) / 60:.1f} minutes, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"Report page: {folder / 'ptq' / 'report.html'}")
    print(f"Folder for a model hub: {published}")
    print("To upload it: stablequant publish EXPERIMENT --repo user/name")


if __name__ == "__main__":
    main()
