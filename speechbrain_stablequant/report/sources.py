"""What says how a model is quantized: recognized by content, never unpickled.

An experiment, a published folder or a Hub repository, a checkpoint, a domain, a
plan or a report: each is read into a `Source`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Optional

from speechbrain_stablequant.artifacts.experiment import (
    Experiment,
    is_published,
    is_quantized,
)
from speechbrain_stablequant.artifacts.report_schema import read_run_file
from speechbrain_stablequant.artifacts.safetensors_file import (
    is_safetensors,
    read_raw_header,
    tensor_sizes,
)
from speechbrain_stablequant.core.plan import LayerPlan, QuantizationPlan
from speechbrain_stablequant.errors import SourceError

__all__ = ["Source", "fetch", "read_source"]

_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*\Z")
_HUB_FILES = ("hyperparams.yaml", "plan.json", "report.json", "*.ckpt")
_PICKLE = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


@dataclass
class Source:
    """What is known of how a model is quantized.

    Arguments
    ---------
    name : str
        As the user wrote it.
    kind : str
        ``experiment``, ``published``, ``checkpoint``, ``domain``, ``plan``,
        ``report`` or ``float checkpoint``.
    path : Path
        The folder or file.
    method : str
        The method that made the plan.
    layers : dict, optional
        `LayerPlan` by name; None where layers are not known.
    report : dict, optional
        The report of the test passes.
    files : list of dict
        Checkpoints: ``name``, ``num_bytes`` and, where known,
        ``float_num_bytes``.
    sizes : dict
        Bytes of a layer's weights by its name, as stored.
    settings : dict
        The settings that the plan was made with.
    about : dict
        More facts to show, by name.
    coverage : dict, optional
        ``fraction`` of the weight bytes that is quantized, and ``parameters``.
    experiment : Experiment, optional
        The folder, for kind ``experiment``.
    """

    name: str
    kind: str
    path: Path
    method: str = ""
    layers: Optional[Mapping[str, LayerPlan]] = None
    report: Optional[dict] = None
    files: list[dict] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    settings: Mapping = field(default_factory=dict)
    about: dict = field(default_factory=dict)
    coverage: Optional[dict] = None
    experiment: Optional[Experiment] = None


def read_source(name: str) -> Source:
    """Recognize a source and read it.

    Arguments
    ---------
    name : str
        A folder, a file, or the name of a repository on the hub.

    Raises
    ------
    StableQuantError
        If it is missing, damaged, or not of this package.
    """
    path = fetch(name)
    if path.is_dir():
        return _folder(name, path)
    if not path.is_file():  # reading a pipe would never end
        raise SourceError(f"{name} is neither a file nor a folder.")
    if path.suffix == ".json":
        return _json(name, path)
    return _file(name, path)


def fetch(name: str) -> Path:
    """Return a local path, after a download if it names a Hub repository.

    Only the quantized model and its description are fetched.

    Raises
    ------
    SourceError
        If there is neither such a path nor such a repository.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if not _HUB_NAME.match(str(name)):
        raise SourceError(f"{name} is not there: no such file or folder.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*_HUB_FILES]))
    except Exception as err:  # of the hub, of its checks, of the network
        reason = str(err).strip().splitlines()[0] if str(err).strip() else err
        raise SourceError(
            f"{name} is not a file or folder here, and cannot be fetched from "
            f"the Hub ({type(err).__name__}: {reason})."
        ) from err


# -- folders -----------------------------------------------------------------


def _folder(name: str, path: Path) -> Source:
    if is_published(path):
        return _published(name, path)
    if (path / "CKPT.yaml").is_file():
        what, pattern = "a float checkpoint folder", "*.ckpt"
    elif count := len(list(path.glob("CKPT*/CKPT.yaml"))):
        what, pattern = f"{count} float checkpoint folders", "CKPT*/*.ckpt"
    else:
        return _experiment(name, path)
    return _float(name, path, what, sorted(path.glob(pattern)))


def _experiment(name: str, path: Path) -> Source:
    experiment = Experiment(path)
    folder = experiment.ptq
    plan = _plan_in(folder)
    report = _in(folder, "report")
    source = Source(name, "experiment", path, report=report)
    if any(map(is_quantized, folder.glob("checkpoint/*"))):
        # Always read: their hashes are verified on the way
        stored = _of_checkpoints(name, path, experiment.checkpoints)
        if report is None:  # made by `stablequant apply`
            source = stored
            _name_layers(source, plan)
            source.coverage = _in(folder, "coverage")
    if source.layers is None:
        _add_plan(source, plan)
        _add_report(source)
    source.kind, source.experiment = "experiment", experiment
    source.about["folder"] = str(folder)
    return source


def _in(folder: Path, what: str) -> Optional[dict]:
    """Return the report or the coverage in a folder, if there is one."""
    path = folder / f"{what}.json"
    return read_run_file(path, what) if path.is_file() else None


def _plan_in(folder: Path) -> Optional[QuantizationPlan]:
    path = folder / "plan.json"
    return QuantizationPlan.load(path) if path.is_file() else None


def _published(name: str, path: Path) -> Source:
    files = sorted(filter(is_quantized, path.glob("*.ckpt")))
    source = _of_checkpoints(name, path, {file.stem: file for file in files})
    source.kind = "published"
    _name_layers(source, _plan_in(path))
    source.report = _in(path, "report")
    if source.report is not None:
        _add_float_sizes(source)
        _add_coverage(source)
    return source


def _name_layers(source: Source, plan: Optional[QuantizationPlan]) -> None:
    """Rename layers from names within their files to names in the model.

    Files are named after loadables, which need not be names of modules. So a
    layer is found in the plan of the model by how it is quantized; of several
    candidates the one whose name ends alike is taken. If a layer is not found,
    the plan belongs to other files, and all names stay.
    """
    if plan is None:
        return
    free: dict[str, list[str]] = {}
    for name, how in plan.layers.items():
        free.setdefault(repr(how), []).append(name)
    names = {}
    for name, how in source.layers.items():
        alike = free.get(repr(how))
        if not alike:
            return
        names[name] = max(alike, key=lambda n: _shared_end(n, name))
        alike.remove(names[name])
    source.layers = {names[n]: how for n, how in source.layers.items()}
    source.sizes = {names[n]: size for n, size in source.sizes.items()}
    source.method, source.settings = plan.method, plan.settings


def _shared_end(first: str, second: str) -> int:
    """Return how many parts two names have in common at their end."""
    pairs = zip(first.split(".")[::-1], second.split(".")[::-1])
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _add_plan(source: Source, plan: Optional[QuantizationPlan]) -> None:
    if plan is not None:
        source.layers, source.method = plan.layers, plan.method
        source.settings = plan.settings


def _add_report(source: Source) -> None:
    """Take files, coverage and sizes of layers from a report."""
    if source.report is None:
        return
    source.files = source.report["files"]
    _add_coverage(source)
    for row in source.coverage["parameters"]:
        if row["status"] == "quantized":
            layer = row["name"].rpartition(".")[0]
            size = source.sizes.get(layer, 0) + row["quantized_num_bytes"]
            source.sizes[layer] = size


def _add_coverage(source: Source) -> None:
    found = source.report["coverage"]
    source.coverage = {
        "fraction": found.get("fraction"),
        "parameters": found.get("parameters") or [],
    }


def _add_float_sizes(source: Source) -> None:
    """Add float sizes from a report to files that have its quantized sizes."""
    known = {file["name"]: file for file in source.report["files"]}
    for file in source.files:
        row = known.get(file["name"])
        if row is not None and row["num_bytes"] == file["num_bytes"]:
            file["float_num_bytes"] = row.get("float_num_bytes")


# -- files -------------------------------------------------------------------


def _json(name: str, path: Path) -> Source:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise SourceError(f"Cannot read {path} as JSON: {err}.") from err
    keys = set(data) if isinstance(data, dict) else set()
    if {"tests", "coverage"} <= keys:
        source = Source(
            name, "report", path, report=read_run_file(path, "report")
        )
        _add_report(source)
        source.method = (source.report.get("plan") or {}).get("method", "")
        return source
    if "layers" not in keys:
        raise SourceError(
            f"{path} is neither a plan (no 'layers') nor a report (no 'tests' "
            "and 'coverage')."
        )
    source = Source(name, "plan", path)
    _add_plan(source, QuantizationPlan.from_dict(data, str(path)))
    return source


def _file(name: str, path: Path) -> Source:
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(_PICKLE):
        return _float(name, path, "a float checkpoint", [path])
    if not is_safetensors(path):
        raise SourceError(
            f"{path} is not a quantized checkpoint, domain, plan or report, "
            "and not a float checkpoint of SpeechBrain."
        )
    metadata = read_raw_header(path).get("__metadata__", {})
    if metadata.get("format") == "speechbrain_stablequant.domain":
        files = [_file_row(path, path.parent)]
        source = Source(name, "domain", path, files=files)
    else:
        source = _of_checkpoints(name, path, {"": path})
        if "domain" not in source.about.get("extra", {}):
            return source
        source.kind = "domain"
    _describe_domain(source)
    return source


def _float(name: str, path: Path, what: str, files: list[Path]) -> Source:
    """Describe float checkpoints of SpeechBrain; no pickle is loaded."""
    folder = path if path.is_dir() else path.parent
    rows = [_file_row(file, folder) for file in files]
    about = {"what": f"{what} of SpeechBrain, not quantized"}
    return Source(name, "float checkpoint", path, files=rows, about=about)


def _file_row(file: Path, folder: Path) -> dict:
    name = str(file.relative_to(folder).with_suffix(""))
    return {"name": name, "num_bytes": file.stat().st_size}


def _describe_domain(source: Source) -> None:
    from speechbrain_stablequant.models.multi_domain.files import (
        check_domain,
        read_domain,
    )

    header = read_domain(source.path)
    check_domain(header)
    source.about.pop("extra", None)
    source.about.update(
        domain=header.name,
        trunk=header.trunk,
        config=header.config.to_dict(),
        quantized=header.quantized,
    )


def _of_checkpoints(name: str, path: Path, files: dict[str, Path]) -> Source:
    """Read quantized files: plans, sizes and extra data."""
    from speechbrain_stablequant.artifacts.checkpoint_reader import (
        check_hash,
        read_header,
    )

    source = Source(name, "checkpoint", path, layers={})
    for stem, file in files.items():
        header = read_header(file)
        check_hash(file)
        prefix = f"{stem}." if stem else ""
        plan, sizes = header["plan"], tensor_sizes(file)
        for layer, how in plan.layers.items():
            source.layers[prefix + layer] = how
            source.sizes[prefix + layer] = sum(
                size
                for tensor, size in sizes.items()
                if tensor.startswith(f"{layer}." if layer else "")
                and tensor.endswith(("_packed", "_scale", "_zero_point"))
            )
        source.method, source.settings = plan.method, plan.settings
        source.files.append(_file_row(file, file.parent))
        if header["extra"]:
            source.about["extra"] = header["extra"]
    return source
