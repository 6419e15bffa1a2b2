"""``stablequant export``: files that a runtime executes without PyTorch."""

import json
from pathlib import Path

from speechbrain_stablequant.core.format import align, megabytes, to_json

NAME = "export"
HELP = "Write a published model as ONNX or OpenVINO files."
EXAMPLES = """
stablequant export results/1986/ptq/hub --to onnx --output onnx
stablequant export user/asr-wav2vec2-w8a8 --to openvino --output ir
"""
MANIFEST = "export.json"
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
    from speechbrain_stablequant.core.files import check_output, filled
    from speechbrain_stablequant.publishing.export import (
        find_parts,
        samples,
        verify,
        write_part,
    )
    from speechbrain_stablequant.publishing.load import load_model

    output = check_output(arguments.output, arguments.overwrite)
    model = load_model(arguments.source)
    note(f"converting {model.name}")
    parts = find_parts(model, arguments.to, samples(model))
    old = _older(output / MANIFEST)
    with filled(output, arguments.overwrite, old) as work:
        rows = []
        for part in parts:
            path = write_part(part, arguments.to, work)
            checks = verify(part, arguments.to, path)
            rows.append(_row(part, path, checks))
        about = _about(arguments, model, rows)
        text = to_json(about, indent=1) + "\n"
        (work / MANIFEST).write_text(text, encoding="utf-8")
    return {"output": str(output), **about}


def _older(manifest: Path) -> list[str]:
    """Return the files of an earlier export that are still in its folder."""
    try:
        rows = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        names = [Path(row["file"]) for row in rows]
    except (OSError, ValueError, LookupError, TypeError):
        return []  # not a manifest of ours: nothing to remove
    names += [name.with_suffix(".bin") for name in names]
    folder = manifest.parent
    return [
        name.name  # a manifest must not lead out of its folder
        for name in names
        if name.suffix in (".onnx", ".xml", ".bin")
        and (folder / name.name).is_file()
    ]


def _row(part, path: Path, checks: list[dict]) -> dict:
    """Return what a file takes, gives, and how close it is."""
    planned = [row for row in part.layers if row.planned_int8]
    int8 = [row for row in planned if row.precision == "int8"]
    weights = path.with_suffix(".bin")
    sizes = [f.stat().st_size for f in (path, weights) if f.is_file()]
    return {
        "file": path.name,
        "module": part.name,
        "num_bytes": sum(sizes),
        "inputs": [
            {
                "name": name,
                "dtype": str(tensor.dtype).replace("torch.", ""),
                "shape": ["dynamic"] * tensor.dim(),
                "example_shape": list(tensor.shape),
            }
            for name, tensor in part.inputs
        ],
        "outputs": [
            {
                "dtype": str(tensor.dtype).replace("torch.", ""),
                "example_shape": list(tensor.shape),
            }
            for tensor in part.calls[0][2]
        ],
        "num_int8": len(int8),
        "num_planned_int8": len(planned),
        "num_quantized": len(part.layers),
        "checks": checks,
    }


def _about(arguments, model, rows: list[dict]) -> dict:
    from importlib import metadata

    from speechbrain_stablequant.report.data import environment

    packages = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
    return {
        "ok": all(check["ok"] for row in rows for check in row["checks"]),
        # Manifests may be published: no paths of this machine
        "source": Path(arguments.source).name
        if Path(arguments.source).exists()
        else arguments.source,
        "interface": model.name,
        "to": arguments.to,
        "sample_rate": model.sample_rate if model.takes_audio else None,
        "files": rows,
        "versions": {p: metadata.version(p) for p in packages[arguments.to]},
        "environment": environment(),
    }


def lines(result: dict) -> list[str]:
    """Return a row for each file, and how to run the first."""
    rows = [
        ("file", "bytes", "layers in int8", "SNR (dB)", "largest difference")
    ]
    for row in result["files"]:
        worst = min(row["checks"], key=_snr)
        rows.append(
            (
                row["file"],
                megabytes(row["num_bytes"]),
                f"{row['num_int8']} of {row['num_planned_int8']}",
                _text(worst["snr"], "{:.1f}"),
                _text(worst["max_difference"], "{:.2g}"),
            )
        )
    first = result["files"][0]
    inputs = ", ".join(f'"{i["name"]}": ...' for i in first["inputs"])
    code = RUN[result["to"]].format(file=first["file"], inputs=inputs)
    found = [f"wrote {result['output']}", "", *align(rows, left=[0]), ""]
    if not result["ok"]:
        found.append(
            "CHECK FAILED: a file computes something else than the model; see "
            f"{MANIFEST}"
        )
    given = [f"{i['name']} {i['dtype']}" for i in first["inputs"]]
    found.append(f"{first['module']} takes {json.dumps(given)}; to run it:")
    return [*found, *(f"  {line}" for line in code.splitlines())]


def _snr(check: dict) -> float:
    if check["snr"] is not None:
        return check["snr"]
    return float("inf") if check["ok"] else float("-inf")


def _text(value, form: str) -> str:
    return "-" if value is None else form.format(value)
