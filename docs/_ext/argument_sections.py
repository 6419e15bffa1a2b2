"""Read the ``Arguments`` section of a docstring in SpeechBrain's style."""

import inspect
import re

__all__ = ["read_arguments"]

_ENTRY = re.compile(r"^(\*{0,2}\w+(?:, \w+)*) : (.+)$")


def read_arguments(docstring):
    """Return what an ``Arguments`` section says, by name.

    Arguments
    ---------
    docstring : str
        A docstring in numpy style.

    Returns
    -------
    dict
        Type and description by name; one entry for each of ``a, b : int``.

    Example
    -------
    >>> text = '''Title.
    ...
    ... Arguments
    ... ---------
    ... low, high : float
    ...     Ends of
    ...     the range.
    ...
    ... Returns
    ... -------
    ... int
    ... '''
    >>> read_arguments(text)["high"]
    ('float', 'Ends of\\nthe range.')
    """
    lines = inspect.cleandoc(docstring or "").splitlines()
    found, names = {}, []
    for line in _section(lines, "Arguments"):
        entry = _ENTRY.match(line)
        if entry:
            names = [name.strip("* ") for name in entry[1].split(",")]
            found.update({name: (entry[2], []) for name in names})
        elif names:
            for name in names:
                found[name][1].append(line.strip())
    return {
        name: (kind, "\n".join(text).strip())
        for name, (kind, text) in found.items()
    }


def _section(lines, title):
    """Return the lines below a title, up to the next title."""
    for start, line in enumerate(lines[:-1]):
        if line == title and set(lines[start + 1]) == {"-"}:
            break
    else:
        return []
    body = lines[start + 2 :]
    for end in range(1, len(body)):
        if body[end] and set(body[end]) == {"-"}:
            return body[: end - 1]
    return body
