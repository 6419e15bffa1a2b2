"""``stablequant export``: files that a runtime executes without PyTorch."""

import json

from speechbrain_stablequant.core.format import align, megabytes, number

NAME = "export"
HELP = "Write a published model as ONNX or OpenVINO files."
EXAMPLES = """
stablequant export results/1986/ptq/hub --to onnx --output onnx
stablequant export user/asr-wav2vec2-w8a8 --to openvino --output ir
"""
RUN = {
    "onnx": """\
import onnxruntime
session = onnxruntime.InferenceSession("{file}")
inputs = {{{inputs}}}  # numpy arrays
results = session.run(None, inputs)
print([result.shape for result in results])""",
    "openvino": """\
import openvino
model = openvino.Core().compile_model("{file}", "CPU")
inputs = {{{inputs}}}  # numpy arrays
results = list(model(inputs).values())
print([result.shape for result in results])""",
}


def add_arguments(parser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "source", help="published folder, hub name, or published experiment"
    )
    parser.add_argument(
        "--to", required=True, choices=sorted(RUN), help="format of the files"
    )
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace files of an earlier export in the folder",
    )


def run(arguments) -> dict:
    """Load, export, verify."""
    from speechbrain_stablequant.cli.output import note
    from speechbrain_stablequant.publishing.export_folder import export_folder

    return export_folder(
        arguments.source,
        arguments.to,
        arguments.output,
        arguments.overwrite,
        note,
    )


def lines(result: dict) -> list[str]:
    """Return a row for each file, and how to run the first."""
    rows = [
        ("file", "bytes", "layers in int8", "SNR (dB)", "largest difference")
    ]
    for row in result["files"]:
        worst = min(row["checks"], key=_snr)
        difference = worst["max_difference"]
        rows.append(
            (
                row["file"],
                megabytes(row["num_bytes"]),
                f"{row['num_int8']} of {row['num_planned_int8']}",
                number(worst["snr"], 1),
                "-" if difference is None else f"{difference:.2g}",
            )
        )
    first = result["files"][0]
    inputs = ", ".join(f'"{i["name"]}": ...' for i in first["inputs"])
    code = RUN[result["to"]].format(file=first["file"], inputs=inputs)
    found = [f"wrote {result['output']}", "", *align(rows, left=[0]), ""]
    if not result["ok"]:
        found.append(
            "CHECK FAILED: a file computes something else than the model; see "
            "export.json"
        )
    given = [f"{i['name']} {i['dtype']}" for i in first["inputs"]]
    found.append(f"{first['module']} takes {json.dumps(given)}; to run it:")
    return [*found, *(f"  {line}" for line in code.splitlines())]


def _snr(check: dict) -> float:
    if check["snr"] is not None:
        return check["snr"]
    return float("inf") if check["ok"] else float("-inf")
