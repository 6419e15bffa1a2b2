"""What goes wrong with a hub, said so that users know what to do."""

import contextlib
from collections.abc import Iterator
from typing import Optional

from huggingface_hub.errors import OfflineModeIsEnabled

from speechbrain_stablequant.errors import PublishError

__all__ = ["TOKEN_ADVICE", "explained"]

TOKEN_ADVICE = (
    "Make a token that may write in the hub's settings (Access Tokens), then "
    "run 'hf auth login' or set HF_TOKEN."
)
_AGAIN = "Repeat the command: what has arrived is not sent again."
_FULL = "The storage of the account is used up: make room."
_STATUS = {
    400: "The hub refuses the request.",
    401: f"The hub does not accept the token. {TOKEN_ADVICE}",
    402: _FULL,
    403: f"The token may not write there. {TOKEN_ADVICE}",
    404: "The hub finds no such repository or branch, or the token may not "
    "see it. Check the name and the token.",
    409: "It exists already: someone has just made it, or the token may not "
    "see it. Check the name and the token, then repeat the command.",
    412: "Someone has changed the branch meanwhile; nothing was published. "
    "Look at the change, then repeat the command.",
    413: "A file is larger than the hub takes.",
    429: f"The hub has had too many requests. Wait some minutes. {_AGAIN}",
    507: _FULL,
}
# Versions of huggingface_hub differ in the library that they speak HTTP with.
_HTTP_LIBRARIES = ("requests", "urllib3", "httpx", "httpx2", "httpcore")


@contextlib.contextmanager
def explained(repo: str) -> Iterator[None]:
    """Turn what the hub's client raises into a ``PublishError``.

    Arguments
    ---------
    repo : str
        The repository, for the message.

    Raises
    ------
    PublishError
        With what was wrong, where, and what to do. Interruptions and mistakes
        in the code pass through.
    """
    try:
        yield
    except PublishError:
        raise
    except Exception as err:
        reason = _reason(err)
        if reason is None:
            raise
        raise PublishError(f"{repo}: {reason}") from err


def _reason(err: Exception) -> Optional[str]:
    # The client may raise an error of its own on one of the HTTP library.
    chain: list[BaseException] = [err]
    while link := chain[-1].__cause__ or chain[-1].__context__:
        if link in chain:
            break
        chain.append(link)
    if any(isinstance(link, OfflineModeIsEnabled) for link in chain):
        return (
            "Going online is switched off by HF_HUB_OFFLINE (or "
            "TRANSFORMERS_OFFLINE). Unset it to publish."
        )
    said = f"{type(err).__name__}: {_one_line(str(err))}".rstrip(": .")
    for link in chain:
        response = getattr(link, "response", None)
        if response is not None:
            return _of_status(response.status_code, link, err)
    if any(type(link).__name__ == "XetAuthenticationError" for link in chain):
        return _STATUS[401]  # of the storage of large files
    if any(_is_network(link) for link in chain):
        return (
            f"The hub cannot be reached ({said}). Check the network, "
            f"HTTPS_PROXY and HF_ENDPOINT. {_AGAIN}"
        )
    if isinstance(err, (RuntimeError, ValueError, OSError)):
        return f"It failed ({said}). {_AGAIN}"
    return None


def _of_status(status: int, link: BaseException, err: Exception) -> str:
    # The client's own, of the model card; the hub's 400 is a ValueError too.
    if status == 400 and link is not err and isinstance(err, ValueError):
        return f"{_one_line(str(err))} (HTTP 400)"
    text = _STATUS.get(status, _STATUS[400])
    if status >= 500 and status not in _STATUS:
        text = f"The hub has trouble of its own. {_AGAIN}"
    said = _one_line(getattr(link, "server_message", None) or "").rstrip(".")
    return f"{text} (HTTP {status}" + (f", '{said}')" if said else ")")


def _is_network(err: BaseException) -> bool:
    libraries = {t.__module__.partition(".")[0] for t in type(err).__mro__}
    return bool(libraries & set(_HTTP_LIBRARIES)) or isinstance(
        err, (ConnectionError, TimeoutError)
    )


def _one_line(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
