"""From an experiment to a checked folder for a hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Union

from speechbrain_stablequant.artifacts.experiment import Experiment
from speechbrain_stablequant.artifacts.hyperparams import (
    Definitions,
    arguments,
    is_class,
)
from speechbrain_stablequant.errors import PublishError
from speechbrain_stablequant.publishing.card import model_card
from speechbrain_stablequant.publishing.check import (
    Check,
    check_folder,
    require_one_run,
)
from speechbrain_stablequant.publishing.folder import (
    HubFolder,
    fill_folder,
    put_in_place,
    staging,
)
from speechbrain_stablequant.publishing.interfaces import (
    Blueprint,
    choose,
    interface,
    make_blueprint,
)
from speechbrain_stablequant.publishing.inventory import Recipe
from speechbrain_stablequant.publishing.load import interface_of
from speechbrain_stablequant.publishing.options import PublishOptions
from speechbrain_stablequant.publishing.privacy import (
    find_private,
    private_words,
)

__all__ = ["Publication", "make_folder"]

CARD = "README.md"


@dataclass
class Publication:
    """A folder that is ready for a hub.

    Arguments
    ---------
    folder : HubFolder
        What is in it.
    interface : str
        What loads it.
    check : Check, optional
        What a clean process found.
    """

    folder: HubFolder
    interface: str
    check: Optional[Check] = None


def make_folder(
    experiment: Union[str, Path, Experiment],
    options: Optional[PublishOptions] = None,
    extras: Sequence[Callable[[Path], Any]] = (),
) -> Publication:
    """Export an experiment as a folder that stock SpeechBrain loads.

    The folder is built beside its place, loaded in a clean process, scored on a
    few test utterances and searched for paths of this machine. Only then it
    replaces an earlier one.

    Arguments
    ---------
    experiment : str, Path or Experiment
        Output folder of a recipe that was run with the block.
    options : PublishOptions, optional
        What to publish, and what the card is to say.
    extras : sequence of callable
        Called with the folder once the model in it has been checked; each adds
        something, such as a model for another runtime.

    Returns
    -------
    Publication

    Raises
    ------
    PublishError
        If something is missing, the model does not load or is not what was
        measured, or paths of this machine would be published.
    """
    options = options or PublishOptions()
    if not isinstance(experiment, Experiment):
        experiment = Experiment(experiment)
    recipe = Recipe(experiment)
    require_one_run(experiment)
    if options.hyperparams is None:
        blueprint = make_blueprint(choose(recipe, options.interface), recipe)
    else:
        path = Path(options.hyperparams)
        blueprint = _given_blueprint(recipe, path, options.interface)
    if options.uploads:
        _require_consent(blueprint, options.include)
    target = Path(options.output or experiment.ptq / "hub").resolve()
    with staging(target) as scratch:
        folder = fill_folder(scratch / target.name, recipe, blueprint, options)
        check = None
        if not options.no_check:
            check = check_folder(
                folder.path, blueprint.interface, recipe, str(target)
            )
        for add in extras:
            add(folder.path)
        card = model_card(options, blueprint, experiment, folder, check)
        card.save(folder.path / CARD)
        _refuse_private(folder, recipe)
        put_in_place(folder, target)
    return Publication(folder, blueprint.interface.name, check)


def _given_blueprint(
    recipe: Recipe, path: Path, name: Optional[str]
) -> Blueprint:
    """Return the user's inference YAML, and the files that it loads."""
    node = Definitions.load(path).get("pretrainer")
    if not is_class(node, "Pretrainer"):
        raise PublishError(
            f"{path} has no pretrainer (speechbrain.utils.parameter_transfer."
            "Pretrainer): nothing would be loaded."
        )
    given = {key: arguments(value) for key, value in arguments(node).items()}
    elsewhere = set(given.get("paths", {}))
    files = [n for n in given.get("loadables", {}) if n not in elsewhere]
    for file in files:
        if file not in recipe.files:
            raise PublishError(
                f"{path} loads '{file}', but "
                f"{recipe.experiment.ptq / 'checkpoint'} has no {file}.ckpt "
                f"(there: {', '.join(sorted(recipe.files))})."
            )
    unhooked = recipe.quantized & set(files) - set(
        given.get("custom_hooks", {})
    )
    if unhooked:
        raise PublishError(
            f"{path}: the pretrainer needs custom_hooks for the quantized "
            f"{', '.join(sorted(unhooked))}: !name:speechbrain_stablequant."
            "load_quantized"
        )
    return Blueprint(
        interface(name) if name else interface_of(path),
        path.read_text(encoding="utf-8"),
        files,
        pretrained=[file for file in files if recipe.is_pretrained(file)],
    )


def _require_consent(blueprint: Blueprint, include: Sequence[str]) -> None:
    """Refuse to upload what the recipe has not trained, without consent."""
    lacking = [name for name in blueprint.pretrained if name not in include]
    if lacking:
        options = " ".join(f"--include {name}" for name in lacking)
        raise PublishError(
            f"{', '.join(lacking)} were not trained in this recipe: its "
            "pretrainer has them. If you may publish them, say so with "
            f"{options}."
        )


def _refuse_private(folder: HubFolder, recipe: Recipe) -> None:
    words = [*private_words(recipe), str(folder.path.resolve().parent)]
    found = find_private(folder.path, folder.files(), words)
    if found:
        raise PublishError(
            "These files have paths of this machine or tokens in them, which "
            f"are not published: {'; '.join(found[:5])}. If they are in the "
            "YAML, give one without them with --hyperparams."
        )
