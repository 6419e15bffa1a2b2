"""A list of functions by name, checked as they are registered."""

import importlib
import inspect
from collections import UserDict
from typing import Callable, Union

__all__ = ["Registry"]


class Registry(UserDict):
    """The functions of one kind by the name that users write.

    An entry is a function, or ``"module:function"`` for one that is imported
    when it is first asked for. The latter lets options be checked against the
    names without importing what they stand for, which imports the options.

    Arguments
    ---------
    kind : str
        What the functions are, for errors.
    parameters : tuple of str
        What they are called with, in this order.

    Example
    -------
    >>> sizes = Registry("size", ("width", "height"))
    >>> sizes["area"] = lambda width, height: width * height
    >>> sizes["area"](2, 3)
    6
    >>> sizes["side"] = lambda width: width
    Traceback (most recent call last):
    TypeError: The size 'side' is called with (width, height), which its function (width) does not take.
    """

    def __init__(self, kind: str, parameters: tuple[str, ...]):
        super().__init__()
        self.kind, self.parameters = kind, parameters

    def __setitem__(self, name: str, entry: Union[str, Callable]) -> None:
        if not (isinstance(name, str) and name.isidentifier()):
            raise TypeError(
                f"{name!r} cannot name a {self.kind}: use letters, digits and "
                "'_', so that it can be written in YAML."
            )
        if isinstance(entry, str):
            if entry.count(":") != 1:
                raise TypeError(
                    f"The {self.kind} '{name}' is {entry!r}: write "
                    "'package.module:function', or give the function itself."
                )
        else:
            self._check(name, entry)
        self.data[name] = entry

    def __getitem__(self, name: str) -> Callable:
        entry = self.data[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            # Through __setitem__, which checks it.
            self[name] = getattr(importlib.import_module(module), attribute)
            entry = self.data[name]
        return entry

    def _check(self, name: str, function: Callable) -> None:
        """Refuse what cannot be called with the parameters of the kind."""
        if not callable(function):
            raise TypeError(
                f"The {self.kind} '{name}' must be a function, not a "
                f"{type(function).__name__}."
            )
        signature = inspect.signature(function)
        try:
            signature.bind(*self.parameters)
        except TypeError:
            raise TypeError(
                f"The {self.kind} '{name}' is called with "
                f"({', '.join(self.parameters)}), which its function "
                f"{signature} does not take."
            ) from None
