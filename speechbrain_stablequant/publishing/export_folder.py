"""A folder of files for a runtime, with a manifest that describes them."""

import json
from importlib import metadata
from pathlib import Path
from typing import Callable

from speechbrain_stablequant.core.files import check_output, filled
from speechbrain_stablequant.core.format import to_json
from speechbrain_stablequant.publishing.export import (
    Part,
    find_parts,
    samples,
    verify,
    write_part,
)
from speechbrain_stablequant.publishing.load import LoadedModel, load_model
from speechbrain_stablequant.report.data import environment

__all__ = ["export_folder"]

MANIFEST = "export.json"


def export_folder(
    source: str,
    runtime: str,
    output: str,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda text: None,
) -> dict:
    """Export a published model and verify the files.

    Arguments
    ---------
    source : str
        Published folder, Hub repository, or published experiment.
    runtime : str
        ``onnx`` or ``openvino``.
    output : str
        The folder to write.
    overwrite : bool
        Whether to replace files of an earlier export in it.
    tell : callable
        Called with what is going on.

    Returns
    -------
    dict
        ``output`` and what the manifest ``export.json`` holds: the files, what
        they take and give, how close they are to the model; ``ok`` is whether
        all are close enough.

    Raises
    ------
    StableQuantError
        If the source cannot be loaded or exported, or the output is not empty.
    """
    folder = check_output(output, overwrite)
    model = load_model(source)
    tell(f"converting {model.name}")
    parts = find_parts(model, runtime, samples(model))
    older = _older(folder / MANIFEST)
    with filled(folder, overwrite, older) as work:
        rows = []
        for part in parts:
            path = write_part(part, runtime, work)
            rows.append(_row(part, path, verify(part, runtime, path)))
        about = _about(source, runtime, model, rows)
        text = to_json(about, indent=1) + "\n"
        (work / MANIFEST).write_text(text, encoding="utf-8")
    return {"output": str(folder), **about}


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


def _row(part: Part, path: Path, checks: list[dict]) -> dict:
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


def _about(
    source: str, runtime: str, model: LoadedModel, rows: list[dict]
) -> dict:
    """Return the manifest."""
    packages = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
    return {
        "ok": all(check["ok"] for row in rows for check in row["checks"]),
        # Manifests may be published: no paths of this machine
        "source": Path(source).name if Path(source).exists() else source,
        "interface": model.name,
        "to": runtime,
        "sample_rate": model.sample_rate if model.takes_audio else None,
        "files": rows,
        "versions": {p: metadata.version(p) for p in packages[runtime]},
        "environment": environment(),
    }
