"""The parts of an experiment that can be published: modules and files."""

from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from yaml import MappingNode, Node

from speechbrain_stablequant.artifacts.experiment import Experiment
from speechbrain_stablequant.artifacts.hyperparams import (
    Definitions,
    arguments,
    class_name,
    descendants,
    is_class,
    plain,
    reference,
)
from speechbrain_stablequant.errors import PublishError

__all__ = ["Recipe"]

# Wrappers of self-supervised encoders, by class; all take waveforms
ENCODERS = ("Wav2Vec2", "HuBERT", "WavLM")
# Modules that only training uses, or that have no parameters and no effect
_IN_TRAINING = ("log_softmax", "softmax", "env_corrupt", "augmentation")
NORMALIZERS = ("normalize", "normalizer", "mean_var_norm")


class Recipe:
    """An experiment's YAML and files, as far as publishing needs them.

    Arguments
    ---------
    experiment : Experiment
        The output folder of a run.

    Attributes
    ----------
    definitions : Definitions
        The experiment's YAML.
    modules : dict
        Nodes of the Brain's modules by name.
    files : dict
        Paths by the name of a loadable, quantized or not.
    quantized : set of str
        Which of these are quantized.
    objects : dict
        The YAML node of each name that a file may have.
    """

    def __init__(self, experiment: Experiment):
        self.experiment = experiment
        self.definitions = Definitions.load(experiment.hyperparams)
        self.modules = self.definitions.entries("modules")
        if not self.modules:  # a script without a Brain
            loaded = self._listed("Pretrainer", "loadables")
            self.modules = {
                name: node
                for name, node in loaded.items()
                if name in experiment.checkpoints
            }
        if not self.modules:
            raise PublishError(
                f"{experiment.hyperparams} has no 'modules': give the "
                "inference YAML with --hyperparams."
            )
        self.files = {
            Path(name).stem: path
            for name, path in experiment.other_files.items()
            if name.endswith(".ckpt")
        }
        self.files.update(experiment.checkpoints)
        self.quantized = set(experiment.checkpoints)
        self.objects = {
            **self.modules,
            **self._listed("Pretrainer", "loadables"),
            **self._listed("Checkpointer", "recoverables"),
        }
        for name, node in self.objects.items():
            if isinstance(node, MappingNode) or class_name(node):
                self.definitions.give_name(name, node)

    def _listed(self, kind: str, field: str) -> dict[str, Node]:
        """Return the nodes that a pretrainer or checkpointer lists."""
        found = {}
        for _, node in self.definitions.values():
            if is_class(node, kind):
                found.update(arguments(arguments(node).get(field)))
        return found

    def is_pretrained(self, name: str) -> bool:
        """Whether a loadable was loaded, and not trained in the recipe."""
        node = self.object(name)
        loaded = self._listed("Pretrainer", "loadables").values()
        trained = self._listed("Checkpointer", "recoverables").values()
        return any(n is node for n in loaded) and not any(
            n is node for n in trained
        )

    def object(self, name: str) -> Optional[Node]:
        """Return the node of a loadable."""
        return self.objects.get(name, self.definitions.get(name))

    def module(self, *names: str) -> Optional[str]:
        """Return the first of these names that is a module of the Brain."""
        return next((name for name in names if name in self.modules), None)

    def module_of(self, *classes: str) -> Optional[str]:
        """Return the first module of the Brain that is of one of the classes."""
        found = (n for n, v in self.modules.items() if is_class(v, *classes))
        return next(found, None)

    def refer(self, name: str) -> Node:
        """Return a reference to a module, or its node if it has no name."""
        node = self.modules.get(name, self.definitions.get(name))
        if node is None:
            raise PublishError(
                f"{self.definitions.source} has neither a module nor a "
                f"definition '{name}'."
            )
        known = self.definitions.name_of(node)
        return node if known is None else reference(known)

    def names_within(self, node: Node) -> set[str]:
        """Return the top-level names that a node contains, its own included."""
        names = {self.definitions.name_of(n) for n in descendants(node)}
        return names - {None}

    @property
    def encoder(self) -> Optional[str]:
        """The module that is a self-supervised encoder, if there is one."""
        return self.module_of(*ENCODERS)

    @property
    def features(self) -> dict[str, Node]:
        """The modules that compute and normalize features."""
        found = {"compute_features": self.refer("compute_features")}
        name = self.module(*NORMALIZERS)
        name = name or next(
            (n for n in NORMALIZERS if n in self.definitions), None
        )
        if name is not None:
            found["normalize"] = self.refer(name)
        return found

    def known_only(self, names: Iterable[str], interface: str) -> None:
        """Refuse modules that the interface would leave out.

        Raises
        ------
        PublishError
            If the Brain has other modules than these.
        """
        known = {*names, *NORMALIZERS, "compute_features", *_IN_TRAINING}
        other = [name for name in self.modules if name not in known]
        if other:
            raise PublishError(
                f"{self.definitions.source} has modules that {interface} is not "
                f"known to have: {', '.join(other)}. Write an inference YAML, "
                "with a pretrainer whose loadables are named as the files in "
                f"{self.experiment.ptq / 'checkpoint'}, and give it with "
                "--hyperparams; the one of another experiment, in its ptq/hub, "
                "is an example."
            )

    def number(self, name: str, default: int) -> int:
        """Return an integer of the YAML.

        Raises
        ------
        PublishError
            If it is not an integer.
        """
        value = self.definitions.value(name, default)
        if isinstance(value, (int, float)) and value == int(value):
            return int(value)
        raise PublishError(
            f"{self.definitions.source} has {name}: {value!r}; a whole number "
            "is needed."
        )

    def sentencepiece_file(self) -> Optional[Path]:
        """Return the tokenizer that SpeechBrain's SentencePiece has trained.

        Recipes make it in Python, and it leaves ``<size>_<type>.model``.
        """
        folders = [self.experiment.folder / "save", self.experiment.folder]
        found = [p for f in folders for p in sorted(f.glob("*.model"))]
        size = self.definitions.value("output_neurons")
        kind = self.definitions.value("token_type", "*")
        named = [p for p in found if p.match(f"{size}_{kind}.model")]
        chosen = named or found
        return chosen[0] if len(chosen) == 1 else None

    def locate(self, path: str) -> Optional[Path]:
        """Find a path of the YAML, which may be relative to the recipe.

        Arguments
        ---------
        path : str
            A relative one is looked for below the output folder, if it starts
            with its name, and from the current folder.

        Returns
        -------
        Path, optional
            None if nothing is found.
        """
        output = str(self.definitions.value("output_folder", "")).rstrip("/")
        places = [Path(path)]
        if output and path.startswith(f"{output}/"):
            below = path[len(output) + 1 :]
            places.insert(0, self.experiment.folder / below)
        if not Path(path).is_absolute() and output:
            parents = self.experiment.folder.resolve().parents
            depth = len(Path(output).parts) - 1
            if depth < len(parents):
                places.append(parents[depth] / path)
        return next((place for place in places if place.exists()), None)

    @property
    def score_normalization(self) -> str:
        """How the recipe normalizes scores of trials; empty if it does not."""
        value = self.definitions.value("score_norm")
        if isinstance(value, str) and value.lower() not in ("", "none", "null"):
            return value
        for _, node in self.definitions.values():
            if node.tag.endswith(".VerificationStats"):
                given = plain(node).get("score_norm")
                if given:
                    return str(given)
        return ""

    def label_file(self, name: str) -> Optional[Path]:
        """Return the file with the labels that a loadable encodes.

        Recipes of SpeechBrain fill an encoder that they make in Python, and
        keep it in ``save/label_encoder.txt``; the one of the YAML, which is in
        the checkpoint, may have stayed empty.
        """
        own = self.files.get(name)
        if own is not None and _has_labels(own):
            return own
        places = [
            self.experiment.folder / folder / f"{stem}.txt"
            for folder in ("save", ".")
            for stem in ("label_encoder", "tokenizer", name)
        ]
        return next((p for p in places if p.is_file() and _has_labels(p)), None)

    def pretrained_path(self, name: str) -> Optional[str]:
        """Return where the recipe's pretrainer gets a loadable from."""
        node = self._listed("Pretrainer", "paths").get(name)
        return None if node is None else str(plain(node))


def _has_labels(path: Path) -> bool:
    """Whether a file of a SpeechBrain encoder has any labels."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    labels, _, _ = text.partition("================")
    return " => " in labels
