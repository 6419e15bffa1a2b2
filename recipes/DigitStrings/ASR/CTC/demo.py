#!/usr/bin/env python3
"""The whole way in minutes: train, quantize, score, publish, load again.

To run it, do the following:
> python demo.py

It runs the recipe (``train.py hparams/demo.yaml``) on digit strings that
espeak-ng speaks in many voices, makes a folder for a model hub, loads it with
stock SpeechBrain and recognises the test set twice more: by reference execution
and on integer kernels. All further arguments go to the recipe.
"""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from speechbrain.dataio.batch import PaddedData
from speechbrain.dataio.dataio import read_audio
from speechbrain.inference.ASR import EncoderASR
from speechbrain.utils.data_utils import batch_pad_right
from speechbrain.utils.metric_stats import ErrorRateStats

from speechbrain_stablequant import accelerate, runtime_report
from speechbrain_stablequant.publishing import (
    About,
    PublishOptions,
    make_folder,
)

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "demo" / "1986"


def publish() -> Path:
    """Make the folder for a hub, as ``stablequant publish`` does."""
    about = About(language="en", trained_with="make demo")
    publication = make_folder(RESULTS, PublishOptions(about=about))
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


def main(arguments: list) -> None:
    """Train and quantize, then load and recognise."""
    start = time.time()
    command = [sys.executable, "train.py", "hparams/demo.yaml", *arguments]
    subprocess.run(command, cwd=HERE, check=True)

    folder = publish()
    model = EncoderASR.from_hparams(
        source=str(folder), savedir=str(RESULTS / "loaded")
    )
    with open(RESULTS / "test.csv", encoding="utf-8") as file:
        # In the order of the recipe: padding is the same, so the result is.
        rows = sorted(csv.DictReader(file), key=lambda r: float(r["duration"]))
    wer = recognise(model, rows)
    fast_wer = recognise(accelerate(model), rows)

    report = json.loads((RESULTS / "ptq" / "report.json").read_text())
    expected = report["tests"][0]["metrics"]["WER"]["quantized"]
    print(f"Loaded from {folder}")
    for row in rows[-3:]:
        print(f"  {row['wrd']}  ->  {model.transcribe_file(row['wav'])}")
    print(f"WER of the quantized model in the recipe:  {expected:.2f} %")
    print(f"WER of the same model, loaded from disk:   {wer:.2f} %")
    print(f"WER of the same, after accelerate(model):  {fast_wer:.2f} %")
    print(f"  {runtime_report(model).summary()}")
    print(
        f"{(time.time() - start) / 60:.1f} minutes, "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"Report page: {RESULTS / 'ptq' / 'report.html'}")
    print(f"Folder for a model hub: {folder}")
    print("To upload it: stablequant publish EXPERIMENT --repo user/name")
    # Integer kernels round in another order: a word or two may differ.
    if max(abs(wer - expected), abs(fast_wer - expected)) > 0.5:
        sys.exit("The loaded model does not give the recipe's result.")


if __name__ == "__main__":
    main(sys.argv[1:])
