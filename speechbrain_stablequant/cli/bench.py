"""``stablequant bench``: speed and agreement on the user's own audio."""

import argparse

from speechbrain_stablequant.cli.output import environment_line, note
from speechbrain_stablequant.core.format import align, number

NAME = "bench"
HELP = "Measure a published model on your own audio files."
EXAMPLES = """
stablequant bench results/1986/ptq/hub *.wav
stablequant bench user/asr-wav2vec2-w8a8 a.flac b.flac --threads 1 --rounds 5
stablequant bench folder *.wav --runtime openvino --json > bench.json
"""


def add_arguments(parser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "source", help="published folder, hub name, or published experiment"
    )
    parser.add_argument(
        "audio",
        nargs="+",
        metavar="AUDIO",
        help="audio files (wav, flac, ogg, mp3)",
    )
    parser.add_argument(
        "--threads", type=_positive, help="threads of a call (torch's default)"
    )
    parser.add_argument(
        "--rounds", type=_positive, default=3, help="timed passes (3)"
    )
    parser.add_argument(
        "--batch-size",
        type=_positive,
        default=1,
        help="utterances in a call (1)",
    )
    parser.add_argument(
        "--runtime",
        action="append",
        choices=("openvino", "onnx"),
        help="may be given twice; by default all that are installed",
    )
    parser.add_argument(
        "--reference",
        action="store_true",
        help="also time reference execution, which is exact and slow",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def run(arguments) -> dict:
    """Load, read, measure in turns."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads or before)
    try:
        return _measured(arguments, torch.get_num_threads())
    finally:
        torch.set_num_threads(before)


def _measured(arguments, threads: int) -> dict:
    """Return all figures, what was measured and on what."""
    from speechbrain_stablequant.errors import SourceError
    from speechbrain_stablequant.publishing.load import load_model, read_audio
    from speechbrain_stablequant.publishing.measure import measure
    from speechbrain_stablequant.report.data import environment

    model = load_model(arguments.source)
    if not model.takes_audio:
        raise SourceError(
            f"{arguments.source} is loaded with {model.name}, which takes no "
            "audio: bench measures models that do."
        )
    signals = [read_audio(model, path) for path in arguments.audio]
    rows = measure(
        model,
        signals,
        arguments.runtime or _installed_runtimes(),
        arguments.reference,
        threads,
        arguments.batch_size,
        arguments.rounds,
        note,
    )
    seconds = [len(signal) / model.sample_rate for signal in signals]
    return {
        "ok": not any(row["failure"] for row in rows),
        "source": arguments.source,
        "interface": model.name,
        "load_seconds": model.seconds,
        "files": [
            {"path": path, "seconds": length}
            for path, length in zip(arguments.audio, seconds)
        ],
        "audio_seconds": sum(seconds),
        "batch_size": arguments.batch_size,
        "rounds": arguments.rounds,
        "float_is": "the quantized model's weights in float, same architecture",
        "environment": environment(),
        "candidates": rows,
    }


def _installed_runtimes() -> list[str]:
    from importlib.util import find_spec

    onnx = all(map(find_spec, ("onnx", "onnxruntime")))
    return ["openvino", "onnx"] if onnx else ["openvino"]


def lines(result: dict) -> list[str]:
    """Return the table and what it was measured on."""
    count, seconds = len(result["files"]), result["audio_seconds"]
    files = "file" if count == 1 else "files"
    found = [
        f"{result['source']} ({result['interface']}): {count} {files}, "
        f"{seconds:.1f} s of audio, batches of {result['batch_size']}, median "
        f"of {result['rounds']} rounds in turns; loaded in "
        f"{result['load_seconds']:.1f} s",
        "",
    ]
    head = ["", "real-time factor", "times as fast", "first pass", "like float"]
    exact = any(r["agreement_with_reference"] for r in result["candidates"])
    rows = [[*head, "like reference"] if exact else head]
    for row in result["candidates"]:
        cells = [
            row["name"],
            number(row["real_time_factor"], 4),
            number(row["times_as_fast"], 2),
            f"{row['first_pass_seconds']:.1f} s",
            _agreement(row["agreement"]),
        ]
        if exact:
            cells.append(_agreement(row["agreement_with_reference"]))
        rows.append(cells)
    found += [*align(rows, left=[0]), ""]
    for row in result["candidates"]:
        if row["failure"]:
            found.append(f"{row['name']} failed: {row['failure']}")
        elif row["runtime"]:
            found.append(f"{row['name']}: {row['runtime']['summary']}")
            found += [f"  {note}" for note in row["runtime"]["notes"]]
    found.append(f"PyTorch float32 is {result['float_is']}")
    return [*found, *environment_line(result["environment"])]


def _agreement(found) -> str:
    if found is None:
        return "-"
    if "same_transcripts" in found:
        return (
            f"{found['same_transcripts']} of {found['utterances']} transcripts"
        )
    return f"cosine {found['lowest_cosine']:.4f} at least"
