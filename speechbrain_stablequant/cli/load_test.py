"""``stablequant load-test``: load and run a published model in a clean process."""

from pathlib import Path

from speechbrain_stablequant.errors import PublishError

NAME = "load-test"
HELP = "Load a published model in a clean process and run it."
EXAMPLES = """
stablequant load-test results/wav2vec2/1986/ptq/hub
stablequant load-test user/name speech.wav other.flac
"""


def add_arguments(parser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "source", help="published folder, or user/name on the hub"
    )
    parser.add_argument(
        "audio",
        nargs="*",
        help="audio files; by default the example of the folder (for a "
        "language model: sentences)",
    )
    parser.add_argument(
        "--interface", help="by default what fits its hyperparams.yaml"
    )


def run(arguments) -> dict:
    """Load it and run it."""
    from speechbrain_stablequant.publishing.clean_process import run_clean
    from speechbrain_stablequant.publishing.interfaces import interface
    from speechbrain_stablequant.publishing.load import (
        interface_of,
        published_place,
    )

    arguments.source = published_place(arguments.source)
    if arguments.interface:
        known = interface(arguments.interface)
    else:
        known = interface_of(arguments.source)
    items = _items(arguments, known)
    found = run_clean(arguments.source, known, items)
    return {
        "source": arguments.source,
        "interface": f"{known.module}.{known.name}",
        "results": found["results"],
        "num_parameters": found["num_parameters"],
        "quantized_layers": found["quantized_layers"],
    }


def _items(arguments, interface) -> list[dict]:
    """Return what to run it on."""
    from speechbrain_stablequant.publishing.folder import EXAMPLE

    if interface.takes_text:
        sentences = arguments.audio or ["HELLO"]
        return [{"key": text, "text": text} for text in sentences]
    paths = arguments.audio
    example = Path(arguments.source) / EXAMPLE
    if not paths and example.is_file():
        paths = [str(example)]
    if not paths:
        return [{"key": "2 s of noise", "noise": 2.0}]
    for path in paths:
        if not Path(path).is_file():
            raise PublishError(f"{path} is not there: name audio files.")
    return [{"key": p, "path": str(Path(p).resolve())} for p in paths]


def lines(result: dict) -> list[str]:
    """Say what came out."""
    found = [
        f"{result['source']}: loaded by {result['interface']}, "
        f"{result['quantized_layers']} layers quantized, all "
        f"{result['num_parameters']:,} parameters have values from files"
    ]
    for key, values in result["results"].items():
        said = values.get("text")
        if said is None:
            said = ", ".join(f"{k} {v}" for k, v in values.items())
        found.append(f"  {key}: {said}")
    return found
