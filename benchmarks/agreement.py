"""Compare runtimes with reference execution, on a trained recipe's test set.

    python -m benchmarks.agreement recipes/SpeechCommands/ASR/CTC/train.py \
        recipes/SpeechCommands/ASR/CTC/hparams/wav2vec2_small.yaml \
        --data_folder DATA --output_folder results/wav2vec2_small/1986

Runs the recipe with ``--test_only``: one float pass, then the quantized model
by reference execution and on each runtime. Prints a Markdown table and writes
``<output_folder>/ptq/agreement.json``. All further arguments go to the recipe.
"""

import json
import sys
from pathlib import Path

from speechbrain.utils.metric_stats import ErrorRateStats

from benchmarks.recipe import run_recipe
from speechbrain_stablequant.errors import StableQuantError
from speechbrain_stablequant.recipe.evaluator import find_metrics, metrics_of
from speechbrain_stablequant.recipe.isolation import test_name
from speechbrain_stablequant.recipe.quantizer import PostTrainingQuantizer
from speechbrain_stablequant.report import TestResult
from speechbrain_stablequant.report.data import environment
from speechbrain_stablequant.runtime import make_backend

RUNTIMES = (
    ("reference", "f32"),
    ("openvino", "f32"),
    ("openvino", "bf16"),
    ("onnx", "f32"),
)


class Agreement(PostTrainingQuantizer):
    """A ``ptq`` block that runs one plan on every runtime.

    Arguments
    ---------
    **options : dict
        As for `PostTrainingQuantizer`.
    """

    def evaluate(self, brain, run, keys):
        """Run the float pass once, then one quantized pass for each runtime."""
        name = test_name(brain, set())
        loss = run()
        metrics = find_metrics(brain)
        rows, expected = [], None
        for runtime, precision in RUNTIMES:
            row = {"runtime": runtime, "precision": precision}
            rows.append(row)
            try:
                self.backend = make_backend(runtime, precision=precision)
                outputs, result = self._pass(brain, run, name, loss, metrics)
            except StableQuantError as err:
                row["skipped"] = str(err)
                continue
            if expected is None:
                expected = outputs
            row.update(_compare(outputs, expected))
            found = result.to_dict(self.settings.seed)
            row["runtime_report"] = found.pop("runtime")
            row.update(found)
        _write(rows, self.run_of(brain).folder)
        return loss

    def _pass(self, brain, run, name, loss, metrics):
        """Return the outputs of a quantized pass, and its scores."""
        outputs = {"log_probs": [], "transcripts": {}}
        compute_forward = brain.compute_forward

        def recorded(batch, stage):
            predictions = compute_forward(batch, stage)
            outputs["log_probs"].append(predictions[0].detach().clone())
            return predictions

        def recorded_run():
            # Only here: calibration runs the model, too.
            vars(brain)["compute_forward"] = recorded
            try:
                value = run()
            finally:
                del vars(brain)["compute_forward"]
            for stats in metrics_of(brain).values():
                if isinstance(stats, ErrorRateStats):
                    outputs["transcripts"] = {
                        item["key"]: item["hyp_tokens"] for item in stats.scores
                    }
            return value

        result = TestResult(name, loss, float_metrics=metrics)
        self.quantize(self.run_of(brain), recorded_run, result)
        return outputs, result


def _compare(outputs: dict, expected: dict) -> dict:
    """Return how far a runtime is from reference execution."""
    differences = [
        float((a - b).norm() / b.norm())
        for a, b in zip(outputs["log_probs"], expected["log_probs"])
    ]
    ours, theirs = outputs["transcripts"], expected["transcripts"]
    return {
        "same_transcripts": sum(ours[key] == theirs[key] for key in theirs),
        "num_utterances": len(theirs),
        "mean_difference": sum(differences) / len(differences),
        "max_difference": max(differences),
    }


def _write(rows: list, folder: Path) -> None:
    """Print the table and write the JSON."""
    print(
        "| runtime | what is not int8 | same transcripts | WER "
        "| log-probabilities differ by, mean (max) | layers in int8 |"
    )
    print("|---" * 6 + "|")
    for row in rows:
        start = f"| {row['runtime']} | {row['precision']} "
        if "skipped" in row:
            print(f"{start}| skipped: {row['skipped']} | | | |")
            continue
        wer = row["metrics"]["WER"]["quantized"]
        layers, counts = "", row["runtime_report"]
        if counts is not None:
            layers = f"{counts['num_int8']} of {counts['num_planned']}"
        print(
            f"{start}| {row['same_transcripts']} of {row['num_utterances']} "
            f"| {wer:.2f} | {row['mean_difference']:.1e} "
            f"({row['max_difference']:.1e}) | {layers} |"
        )
    path = folder / "agreement.json"
    text = json.dumps({"rows": rows, "environment": environment()}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    run_recipe("benchmarks.agreement.Agreement", *sys.argv[1:])
