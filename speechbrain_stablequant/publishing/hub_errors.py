"""What goes wrong with a model hub, said so that users know what to do."""

import contextlib
from collections.abc import Iterator
from typing import Optional

from speechbrain_stablequant.errors import PublishError

__all__ = ["TOKEN_ADVICE", "explained"]

TOKEN_ADVICE = (
    "Make a token that may write in the hub's settings (Access Tokens), then "
    "run 'hf auth login' or set HF_TOKEN."
)
_AGAIN = "Repeat the command: what has arrived is not sent again."
_STATUS = {
    400: "The hub refuses the request as wrong.",
    401: f"The hub does not accept the token. {TOKEN_ADVICE}",
    402: "The hub asks for payment: the storage of the account is used up. "
    "Make room or choose another destination.",
    403: "The token may not write there, or may not at all. " + TOKEN_ADVICE,
    404: "The hub finds no such repository or branch, or the token may not "
    "see it. Check the name and the token.",
    409: "It is there already: someone has just made it, or the token may not "
    "see it. Check the name and the token, then repeat the command.",
    412: "Someone has changed the branch meanwhile; nothing was published. "
    "Look at the change, then repeat the command.",
    413: "A file is larger than the hub takes. Publish fewer or smaller files.",
    429: "The hub has had too many requests from here. Wait some minutes, "
    "then repeat the command.",
    507: "The storage of the account is used up. Make room or choose another "
    "destination.",
}
# Versions of huggingface_hub differ in the library that they speak HTTP with.
_HTTP_LIBRARIES = ("requests", "urllib3", "httpx", "httpx2", "httpcore")


@contextlib.contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn what a hub's client raises into a ``PublishError``.

    Arguments
    ---------
    where : str
        The destination, for the message.

    Raises
    ------
    PublishError
        With what was wrong, where, and what to do. Interruptions and errors
        of other origin pass through.
    """
    try:
        yield
    except PublishError:
        raise
    except Exception as err:
        reason = _reason(err)
        if reason is None:
            raise
        raise PublishError(f"{where}: {reason}") from err


def _reason(err: BaseException) -> Optional[str]:
    chain = list(_chain(err))
    for link in chain:
        if type(link).__name__ == "OfflineModeIsEnabled":
            return (
                "Going online is switched off by HF_HUB_OFFLINE (or "
                "TRANSFORMERS_OFFLINE). Unset it to publish."
            )
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status == 400 and link is not err and isinstance(err, ValueError):
            return f"{_one_line(str(err))} (HTTP 400)"  # what is wrong where
        if status is not None:
            return _of_status(int(status), link)
        if type(link).__name__ == "XetAuthenticationError":  # of its storage
            return _STATUS[401]
    for link in chain:
        if _is_network(link):
            return _of_network(link)
    if isinstance(err, (RuntimeError, ValueError, OSError)):
        said = f"{type(err).__name__}: {_one_line(str(err))}"
        return f"It failed ({said}). {_AGAIN}"
    return None


def _chain(err: Optional[BaseException]) -> Iterator[BaseException]:
    """Yield an error and what caused it: clients wrap what HTTP raised."""
    seen = set()
    while err is not None and id(err) not in seen:
        seen.add(id(err))
        yield err
        err = err.__cause__ or err.__context__


def _of_status(status: int, err: BaseException) -> str:
    text = _STATUS.get(status)
    if text is None and status >= 500:
        text = f"The hub has trouble of its own. {_AGAIN}"
    text = text or "The hub refuses the request."
    said = getattr(err, "server_message", None)
    said = f", '{_one_line(said).rstrip('.')}'" if said else ""
    return f"{text} (HTTP {status}{said})"


def _is_network(err: BaseException) -> bool:
    libraries = {t.__module__.partition(".")[0] for t in type(err).__mro__}
    if libraries & set(_HTTP_LIBRARIES):
        return True
    return isinstance(err, (ConnectionError, TimeoutError))


def _of_network(err: BaseException) -> str:
    detail = f"{type(err).__name__}: {_one_line(str(err))}".rstrip(": .")
    if "Timeout" in type(err).__name__:
        return f"The hub does not answer ({detail}). {_AGAIN}"
    return (
        f"The hub cannot be reached ({detail}). Check the network, "
        f"HTTPS_PROXY and HF_ENDPOINT. {_AGAIN}"
    )


def _one_line(text: str, limit: int = 300) -> str:
    """Return text of a client without line breaks, cut where it is long."""
    text = " ".join(str(text).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
