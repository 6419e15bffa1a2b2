"""``stablequant publish``: from an experiment to a model on a hub."""

from pathlib import Path
from typing import Any

NAME = "publish"
HELP = "Make a hub folder from an experiment, check it, and upload it."
EXAMPLES = """
stablequant publish results/wav2vec2/1986 --repo user/name --dry-run
stablequant publish results/wav2vec2/1986 --repo user/name --private
stablequant publish results/ecapa/1986 --repo user/name --language en
stablequant publish results/lm/1986 --hyperparams inference.yaml
"""


def add_arguments(parser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "experiment", help="output folder of the recipe, or its ptq folder"
    )
    parser.add_argument(
        "--output", help="the folder to make (EXPERIMENT/ptq/hub)"
    )
    _add_hub(parser.add_argument_group("the hub"))
    _add_model(parser.add_argument_group("the model"))
    _add_card(parser.add_argument_group("the model card"))


def _add_hub(group) -> None:
    group.add_argument("--repo", help="user/name; without it, no upload")
    group.add_argument(
        "--dry-run",
        action="store_true",
        help="make and check the folder, list files and sizes, upload nothing",
    )
    visibility = group.add_mutually_exclusive_group()
    visibility.add_argument(
        "--private", action="store_true", default=None, help="only for you"
    )
    visibility.add_argument(
        "--public", dest="private", action="store_false", help="for everybody"
    )
    group.add_argument("--revision", help="branch, made if it is not there")
    group.add_argument(
        "--token",
        help="of the hub; by default that of HF_TOKEN or 'hf auth login', "
        "which keep it out of the shell's history",
    )
    group.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what others have put into the repository",
    )
    group.add_argument("--message", help="of the commit")


def _add_model(group) -> None:
    group.add_argument(
        "--interface",
        help="EncoderASR, EncoderDecoderASR, SpeakerRecognition, "
        "EncoderClassifier, WaveformEncoder or LanguageModel; by default what "
        "fits the modules of the experiment",
    )
    group.add_argument(
        "--hyperparams",
        help="an inference YAML of yours, in place of one from the experiment's",
    )
    group.add_argument("--example", help="audio file to show the model with")
    group.add_argument(
        "--no-example", action="store_true", help="put no audio into it"
    )
    group.add_argument(
        "--openvino", action="store_true", help="add an OpenVINO model"
    )
    group.add_argument("--onnx", action="store_true", help="add an ONNX model")
    group.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="NAME",
        help="upload a file that the recipe's pretrainer has, and that was not "
        "trained here, such as tokenizer; may be repeated",
    )
    group.add_argument(
        "--no-check",
        action="store_true",
        help="do not load and score it in a clean process",
    )


def _add_card(group) -> None:
    group.add_argument("--language", help="code of the language, such as en")
    group.add_argument("--license", help="such as apache-2.0")
    group.add_argument(
        "--dataset", help="of the test sets, such as LibriSpeech"
    )
    group.add_argument(
        "--base-model", help="what was fine-tuned; by default from the YAML"
    )
    group.add_argument(
        "--trained-with", help="command or address of the recipe, for people"
    )


def run(arguments) -> dict:
    """Check the destination, make the folder, upload."""
    from speechbrain_stablequant.publishing import make_folder
    from speechbrain_stablequant.publishing.upload import check_destination

    destination = _destination(arguments)
    uploads = destination is not None and not arguments.dry_run
    if uploads:
        check_destination(destination)  # before anything takes long
    options = _options(arguments, uploads)
    publication = make_folder(arguments.experiment, options)
    folder, check = publication.folder, publication.check
    result = {
        "folder": str(folder.path),
        "interface": publication.interface,
        "files": folder.sizes(),
        "check": None if check is None else check.to_dict(),
        "check_line": None if check is None else check.line(),
        "notes": [*folder.notes, *_advice(arguments)],
        "repo": arguments.repo,
        "uploaded": None,
    }
    if uploads:
        result["uploaded"] = _upload(arguments, folder, destination)
    return result


def _destination(arguments):
    from speechbrain_stablequant.errors import PublishError
    from speechbrain_stablequant.publishing.destination import (
        Destination,
        check_names,
    )

    if arguments.repo is None:
        if arguments.private or arguments.revision or arguments.overwrite:
            raise PublishError(
                "--private, --revision and --overwrite are about a repository: "
                "name it with --repo user/name."
            )
        return None
    check_names(arguments.repo, arguments.revision)
    return Destination(
        arguments.repo,
        arguments.private,
        arguments.revision,
        arguments.token,
        arguments.overwrite,
    )


def _options(arguments, uploads: bool):
    from speechbrain_stablequant.publishing import About, PublishOptions

    about = About(
        repo=arguments.repo,
        language=arguments.language,
        license=arguments.license,
        dataset=arguments.dataset,
        base_model=arguments.base_model,
        trained_with=arguments.trained_with,
    )
    runtimes = [r for r in ("openvino", "onnx") if getattr(arguments, r)]
    return PublishOptions(
        about=about,
        output=arguments.output,
        interface=arguments.interface,
        hyperparams=arguments.hyperparams,
        example=arguments.example,
        with_example=not arguments.no_example,
        extras=tuple(map(_exporter, runtimes)),
        check=not arguments.no_check,
        include=arguments.include if uploads else None,
    )


def _exporter(runtime: str):
    """Return what adds a model for a runtime to a folder."""
    from argparse import Namespace

    from speechbrain_stablequant.cli import export
    from speechbrain_stablequant.errors import PublishError

    def add(folder: Path) -> None:
        output = str(folder / runtime)
        done = export.run(
            Namespace(
                source=str(folder), to=runtime, output=output, overwrite=False
            )
        )
        if not done.get("ok", True):
            raise PublishError(
                f"The {runtime} model does not compute what the published one "
                f"does; without --{runtime} it is left out."
            )

    return add


def _advice(arguments) -> list[str]:
    """Return what the card lacks."""
    lacking = [n for n in ("license", "language") if not getattr(arguments, n)]
    return [f"the card has no {n} (--{n})" for n in lacking]


def _upload(arguments, folder, destination) -> dict[str, Any]:
    from dataclasses import asdict

    from speechbrain_stablequant.publishing.upload import upload

    message = arguments.message or "Publish a quantized model"
    done = upload(
        folder.path,
        folder.files(),
        destination,
        message,
        progress=not arguments.json,
    )
    return {**asdict(done), "summary": done.summary()}


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
