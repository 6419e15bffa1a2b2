"""The options of publishing: of the command, the block and `make_folder`."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Optional

from speechbrain_stablequant.core.options import build_options
from speechbrain_stablequant.errors import KnobError, PublishError

__all__ = ["PublishOptions"]


def _option(group: str, default: Any = None) -> Any:
    """Return a field; the group is its heading in the command's help."""
    return field(default=default, metadata={"group": group})


@dataclass(frozen=True)
class PublishOptions:
    """The options below ``publish``, which `stablequant publish` has too.

    Arguments
    ---------
    repo : str, optional
        user/name on the hub; without it the folder is made and not uploaded.
    dry_run : bool
        Make and check the folder, list files and sizes, upload nothing.
    private : bool, optional
        Whether only you may see it; by default the hub's choice for a new
        repository, and whatever an existing one is.
    revision : str, optional
        Branch; made if it does not exist.
    overwrite : bool
        Replace what others have put into the repository. The hub keeps
        earlier commits.
    message : str, optional
        Message of the commit.
    output : str, optional
        The folder to make; by default ptq/hub in the experiment.
    interface : str, optional
        EncoderASR, EncoderDecoderASR, SpeakerRecognition, EncoderClassifier,
        WaveformEncoder or LanguageModel; by default the one that fits the
        modules of the experiment.
    hyperparams : str, optional
        Your own inference YAML, instead of one made from the experiment's.
    example : str, optional
        Audio file to show the model with; by default a test utterance.
    no_example : bool
        Put no audio into the folder.
    openvino : bool
        Add an OpenVINO model.
    onnx : bool
        Add an ONNX model.
    include : list of str
        Files that may be uploaded although they were not trained in this
        recipe but loaded by its pretrainer, such as tokenizer.
    no_check : bool
        Do not load and score the folder in a clean process.
    language : str, optional
        For the model card: ISO 639 code of the language, such as en.
    license : str, optional
        For the model card: a licence of the hub's list, such as apache-2.0.
    dataset : str, optional
        For the model card: what the test sets belong to, such as LibriSpeech.
    base_model : str, optional
        For the model card: what was fine-tuned; by default from the YAML.
    trained_with : str, optional
        For the model card: command or address of the recipe.

    Raises
    ------
    PublishError
        If a value is of another type, would break the card, or cannot be
        right. `of` raises `KnobError`, and also for unknown options.
    """

    repo: Optional[str] = _option("the hub")
    dry_run: bool = _option("the hub", False)
    private: Optional[bool] = _option("the hub")
    revision: Optional[str] = _option("the hub")
    overwrite: bool = _option("the hub", False)
    message: Optional[str] = _option("the hub")
    output: Optional[str] = _option("the model")
    interface: Optional[str] = _option("the model")
    hyperparams: Optional[str] = _option("the model")
    example: Optional[str] = _option("the model")
    no_example: bool = _option("the model", False)
    openvino: bool = _option("the model", False)
    onnx: bool = _option("the model", False)
    include: tuple[str, ...] = _option("the model", ())
    no_check: bool = _option("the model", False)
    language: Optional[str] = _option("the model card")
    license: Optional[str] = _option("the model card")
    dataset: Optional[str] = _option("the model card")
    base_model: Optional[str] = _option("the model card")
    trained_with: Optional[str] = _option("the model card")

    @classmethod
    def of(cls, given: Any) -> Optional["PublishOptions"]:
        """Read the block's ``publish``; None if nothing is to be published.

        Example
        -------
        >>> options = PublishOptions.of({"repo": "me/digits", "private": True})
        >>> options.arguments()
        ['--repo', 'me/digits', '--private']
        >>> PublishOptions.of(None) is None
        True
        """
        if not given:
            return None
        try:
            return build_options(cls, given, "publish", "{repo: user/name}")
        except PublishError as err:
            raise KnobError(f"publish: {err}") from None

    def __post_init__(self):
        names = self.include or ()
        if isinstance(names, str):
            names = (names,)
        if not isinstance(names, (list, tuple)) or not all(
            isinstance(name, str) for name in names
        ):
            raise PublishError(f"include is {names!r}: names are needed.")
        object.__setattr__(self, "include", tuple(names))
        for option in fields(self):
            _check_type(option, getattr(self, option.name))
        # What would be refused after training is refused before it.
        if self.repo is not None:
            check_repository_name(self.repo, self.revision)
        elif self.private or self.revision or self.overwrite:
            raise PublishError(
                "private, revision and overwrite are about a repository: name "
                "it as user/name with the option repo (--repo)."
            )
        if self.interface is not None:
            from speechbrain_stablequant.publishing.interfaces import interface

            interface(self.interface)
        for name in ("hyperparams", "example"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise PublishError(f"{name}: {path} is not there.")
        if self.base_model and self.base_model.startswith(("/", ".", "~")):
            raise PublishError(
                f"base_model is {self.base_model!r}, a path of this machine: "
                "give the model's name on the hub."
            )
        if self.language is not None and len(self.language) not in (2, 3):
            raise PublishError(
                f"language is '{self.language}': a code of ISO 639 is needed, "
                "such as en."
            )

    @property
    def uploads(self) -> bool:
        """Whether anything leaves this machine."""
        return self.repo is not None and not self.dry_run

    def arguments(self) -> list[str]:
        """Return them as arguments of the command."""
        found = []
        for option in fields(self):
            value = getattr(self, option.name)
            flag = "--" + option.name.replace("_", "-")
            if value is True:
                found.append(flag)
            elif value is False and option.name == "private":
                found.append("--public")
            elif isinstance(value, str):
                found += [flag, value]
            elif isinstance(value, tuple):
                found += [part for name in value for part in (flag, name)]
        return found


def _check_type(option, value: Any) -> None:
    if value is None or option.name == "include":
        return
    if option.type in (bool, Optional[bool]):
        if not isinstance(value, bool):
            raise PublishError(
                f"{option.name} is {value!r}: True or False is needed."
            )
    elif option.name == "message" and isinstance(value, str):
        return  # it is not on the card, and may have a body
    elif not isinstance(value, str) or not value.strip() or "\n" in value:
        raise PublishError(
            f"{option.name} is {value!r}: a line of text is needed."
        )


def check_repository_name(repo: str, branch: Optional[str] = None) -> None:
    """Refuse names that no hub would take, without asking one.

    Raises
    ------
    PublishError
        If one of them is not valid.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") != 1:
            raise HFValidationError("It has to be 'user/name'")
    except HFValidationError as err:
        reason = str(err).strip().rstrip(".")
        raise PublishError(
            f"'{repo}' is not a valid repository id: {reason}.{_meant(repo)}"
        ) from err
    if branch is None:
        return
    if re.fullmatch("[0-9a-f]{40}", branch):
        raise PublishError(
            f"'{branch}' is a commit; give the name of a branch to publish to."
        )
    if not re.fullmatch(r"(?!refs/|[-./])(?!.*(\.\.|//))[\w./-]+", branch):
        raise PublishError(
            f"'{branch}' is not a valid branch name: use letters, digits and "
            "- _ . / as in 'int8'."
        )


def _meant(repo: str) -> str:
    """Return a hint: the id within an address, or one of the right form."""
    path = re.sub(r"^\w+://[^/]*", "", repo)
    usable = re.sub(r"[^A-Za-z0-9_./]+|\.{2,}", "-", path)
    parts = [part.strip("-.") for part in usable.split("/")]
    parts = [part for part in parts if part]
    if len(parts) > 1:
        return f" Did you mean '{parts[0]}/{parts[1]}'?"
    name = parts[0] if parts else "name"
    return f" Put your user name or organization first: 'user/{name}'."
