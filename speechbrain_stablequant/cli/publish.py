"""``stablequant publish``: from an experiment to a model on a hub."""

from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Optional

from speechbrain_stablequant.errors import PublishError

NAME = "publish"
HELP = "Make a hub folder from an experiment, check it, and upload it."
EXAMPLES = """
stablequant publish results/wav2vec2/1986 --repo user/name --dry-run
stablequant publish results/wav2vec2/1986 --repo user/name --private
stablequant publish results/ecapa/1986 --repo user/name --language en
stablequant publish results/lm/1986 --hyperparams inference.yaml
"""


def add_arguments(parser) -> None:
    """Add the arguments of the command: `PublishOptions`, and a token."""
    from speechbrain_stablequant.publishing.options import PublishOptions

    parser.add_argument(
        "experiment", help="output folder of the recipe, or its ptq folder"
    )
    described = _descriptions(PublishOptions.__doc__ or "")
    groups = {}
    for option in fields(PublishOptions):
        title = option.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        group, flag = groups[title], "--" + option.name.replace("_", "-")
        text = described.get(option.name)
        if option.type is bool:
            group.add_argument(flag, action="store_true", help=text)
        elif option.type == Optional[bool]:
            either = group.add_mutually_exclusive_group()
            either.add_argument(
                flag, action="store_true", default=None, help="only for you"
            )
            either.add_argument(
                "--public",
                dest=option.name,
                action="store_false",
                help="for everybody",
            )
        elif option.name == "include":
            group.add_argument(
                flag, action="append", default=[], metavar="NAME", help=text
            )
        else:
            group.add_argument(flag, help=text)
    # No option of the block: it would be kept in the experiment's YAML.
    groups["the hub"].add_argument(
        "--token",
        help="of the hub; by default that of HF_TOKEN or 'hf auth login', "
        "which keep it out of the shell's history",
    )


def _descriptions(docstring: str) -> dict[str, str]:
    """Return what a docstring says of each of its arguments, in one line."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in docstring.splitlines():
        name, colon, _ = line.strip().partition(" : ")
        if colon and name.isidentifier():
            lines = found[name] = []
        elif not line.strip():
            lines = []
        else:
            lines.append(line.strip())
    # argparse formats what follows a percent sign
    return {name: " ".join(t).replace("%", "%%") for name, t in found.items()}


def run(arguments) -> dict:
    """Check the repository, make the folder, upload it."""
    from speechbrain_stablequant.publishing import PublishOptions, make_folder

    given = {o.name: getattr(arguments, o.name) for o in fields(PublishOptions)}
    options = PublishOptions(**given)
    if options.uploads:
        from huggingface_hub.utils import disable_progress_bars

        from speechbrain_stablequant.publishing import hub

        if arguments.json:
            disable_progress_bars()
        # Before the folder is made, which may take long
        hub.check_repository(options, arguments.token)
    extras = [
        partial(_add_export, runtime)
        for runtime in ("openvino", "onnx")
        if getattr(options, runtime)
    ]
    publication = make_folder(arguments.experiment, options, extras)
    folder, check = publication.folder, publication.check
    result = {
        "folder": str(folder.path),
        "interface": publication.interface,
        "files": folder.sizes(),
        "check": None if check is None else check.to_dict(),
        "check_line": None if check is None else check.line(),
        "notes": folder.notes
        + [
            f"the card has no {name} (--{name})"
            for name in ("license", "language")
            if not getattr(options, name)
        ],
        "repo": options.repo,
        "uploaded": None,
    }
    if options.uploads:
        done = hub.upload(folder.path, options, arguments.token)
        result["uploaded"] = {**asdict(done), "summary": done.summary()}
    return result


def _add_export(runtime: str, folder: Path) -> None:
    """Add a model for a runtime to a folder."""
    from speechbrain_stablequant.publishing.export_folder import export_folder

    done = export_folder(str(folder), runtime, str(folder / runtime))
    if not done["ok"]:
        raise PublishError(
            f"The {runtime} model does not compute what the published one "
            f"does; without --{runtime} it is left out."
        )


def lines(result: dict) -> list[str]:
    """Say what is in the folder, and where it is."""
    from speechbrain_stablequant.core.format import align

    total = sum(result["files"].values())
    rows = [(n, f"{size:,}", "") for n, size in result["files"].items()]
    found = [
        *align([("file", "bytes", ""), *rows, ("all", f"{total:,}", "")]),
        "",
        result["check_line"] or "not checked (--no-check)",
        *(f"note: {note}" for note in result["notes"]),
        f"folder: {Path(result['folder'])}",
    ]
    if result["uploaded"] is not None:
        found.append(result["uploaded"]["summary"])
    else:
        name = result["repo"] or "user/name"
        found.append(
            f"nothing was uploaded; to do so: stablequant publish ... --repo {name}"
        )
    return found
