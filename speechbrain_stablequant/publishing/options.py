"""What only the user knows of a model that is to be published."""

from dataclasses import dataclass, fields
from typing import Optional

from speechbrain_stablequant.errors import PublishError

__all__ = ["About"]


@dataclass(frozen=True)
class About:
    """What only the user knows of a model.

    Arguments
    ---------
    repo : str, optional
        ``user/name`` on the hub.
    language, license, dataset : str, optional
        For the metadata: ISO 639 code, licence of the hub's list, data set
        that the test sets belong to.
    base_model : str, optional
        What it was fine-tuned from.
    example : str, optional
        Name of the audio file in the folder.
    trained_with : str, optional
        How it was trained, for people: a command, or an address.
    exports : tuple of str
        Folders with models for runtimes alone.
    departures : tuple of str
        What the recipe's test did and the published model does not.
    foreign : tuple of str
        Files that were not trained in the recipe.

    Raises
    ------
    PublishError
        If a value would break the card, or is a path of this machine.
    """

    repo: Optional[str] = None
    language: Optional[str] = None
    license: Optional[str] = None
    dataset: Optional[str] = None
    base_model: Optional[str] = None
    example: Optional[str] = None
    trained_with: Optional[str] = None
    exports: tuple[str, ...] = ()
    departures: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, str):
                continue
            if not value.strip() or "\n" in value:
                raise PublishError(
                    f"{field.name} is {value!r}: a line of text is needed."
                )
            if field.name == "base_model" and value.startswith(("/", ".", "~")):
                raise PublishError(
                    f"base_model is {value!r}, a path of this machine: give the "
                    "model's name on the hub."
                )
        if self.language is not None and len(self.language) not in (2, 3):
            raise PublishError(
                f"language is '{self.language}': a code of ISO 639 is needed, "
                "such as en."
            )
