"""Int8 against float on the same runtime, with fewer and fewer instructions.

    python -m benchmarks.isa --layers 2 --seconds 4

Each row is a process of its own in which oneDNN may use no more than the named
instruction set (``ONEDNN_MAX_CPU_ISA``): wav2vec2-base with random weights,
OpenVINO in float32 and the quantized model on OpenVINO, in turns, on one
thread. The difference is that of the quantized model to its own reference
execution. Prints a Markdown table and, with ``--output``, writes JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ISAS = (
    "AVX512_CORE_AMX",
    "AVX512_CORE_BF16",
    "AVX512_CORE_VNNI",
    "AVX512_CORE",
    "AVX2",
)


def measure(candidate: str, layers: int, seconds: float, repeats: int) -> dict:
    """Return what one candidate does in this process."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    from speechbrain_stablequant.runtime.processor import detect_processor

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Wav2Vec2Model(Wav2Vec2Config(num_hidden_layers=layers)).eval()
    x = torch.randn(1, int(16000 * seconds))
    row = {"features": sorted(detect_processor().features)}
    with torch.no_grad():
        prepare = {"float": _float, "int8": _int8}[candidate]
        run = prepare(model, x, row)
        run()
        row["seconds"] = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            row["seconds"].append(time.perf_counter() - start)
    return row


def _float(model, x, row: dict):
    """Return what runs the float model on OpenVINO."""
    import openvino

    graph = openvino.convert_model(model, example_input=x)
    config = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(graph, "CPU", config)
    return lambda: compiled(x.numpy())


def _int8(model, x, row: dict):
    """Return what runs the quantized model, and note how well it agrees."""
    from speechbrain_stablequant import accelerate, quantize, runtime_report
    from speechbrain_stablequant.runtime.compiled_module import (
        relative_difference,
    )

    quantize(model, [x], observer="max", progress=False)
    expected = model(x)[0]
    accelerate(model, threads=1, precision="f32", cache_folder=False)
    row["difference"] = relative_difference([model(x)[0]], [expected])
    report = runtime_report(model)
    row["layers"], row["notes"] = report.summary(), report.notes
    return lambda: model(x)


def main() -> None:
    """Run one process for each instruction set and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", help="JSON file to write")
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = options.layers, options.seconds, options.repeats
    if options.candidate:
        print("RESULT " + json.dumps(measure(options.candidate, *shape)))
        return
    rows = {
        isa: {c: _in_process(isa, c, shape) for c in ("float", "int8")}
        for isa in ISAS
    }
    print(markdown(rows))
    if options.output:
        Path(options.output).write_text(json.dumps(rows, indent=1) + "\n")


def _in_process(isa: str, candidate: str, shape) -> dict:
    """Measure under a limit; what crashes is a row that says so."""
    command = [sys.executable, __file__, "--candidate", candidate]
    for name, value in zip(("layers", "seconds", "repeats"), shape):
        command += [f"--{name}", str(value)]
    limits = {"ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **limits}, capture_output=True, text=True
    )
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if lines:
        return json.loads(lines[0].removeprefix("RESULT "))
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return {"failed": f"exit status {done.returncode}: {last[:200]}"}


def markdown(rows: dict) -> str:
    """Return a table; limits that this processor does not reach are left out."""
    lines = [
        "| at most | int8, ms | times OpenVINO float32 "
        "| differs from reference by | remark |",
        "|---" * 5 + "|",
    ]
    seen = set()
    for isa, row in rows.items():
        fast, slow = row["int8"], row["float"]
        if "failed" in fast:
            lines.append(f"| {isa} | | | | {fast['failed']} |")
            continue
        features = tuple(fast["features"])
        # The next lower limit says the same.
        if features in seen or ("AMX" in isa and "amx_int8" not in features):
            continue
        seen.add(features)
        seconds, remarks = statistics.median(fast["seconds"]), [*fast["notes"]]
        ratio = ""
        if "failed" in slow:
            remarks.append("OpenVINO float32 crashes under this limit")
        else:
            ratio = f"{statistics.median(slow['seconds']) / seconds:.2f}"
        lines.append(
            f"| {isa} | {seconds * 1e3:.0f} | {ratio} "
            f"| {fast['difference']:.1e} | {'; '.join(remarks)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
