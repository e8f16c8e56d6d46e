"""What a client of the hub says when it fails, as one line: its reason, never dropped, and the
remedy that fits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from loraexp.machine.words import chain, first_line

Value = TypeVar("Value")
WAITS = (1.0, 3.0)  # seconds before the hub is asked a second and a third time
LONGEST = 30.0  # seconds of a `Retry-After` that are waited for
# answers that may be another one in a moment
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
ON = "the same command goes on with the files that are complete"


class Keys(NamedTuple):
    """The configuration keys that a remedy names: where a repository was named, its revision, and a
    folder in its place.
    """

    source: str
    revision: str
    folder: str


def status(error: BaseException) -> int | None:
    """The status that the hub answered with, if it answered."""
    for one in chain(error):
        code = getattr(getattr(one, "response", None), "status_code", None)
        if isinstance(code, int):
            return code
    return None


def network(error: BaseException) -> BaseException | None:
    """The failure of the connection behind an error, if it is one: nobody there, too slow, or
    broken off.
    """
    if status(error) is not None:
        return None
    for one in chain(error):
        client = type(one).__module__.partition(".")[0]
        if client.startswith(("httpx", "httpcore")) or isinstance(
            one, (ConnectionError, TimeoutError)
        ):
            return one
    return None


def patiently(call: Callable[[], Value]) -> Value:
    """The value of `call`, which is tried again where the hub was busy, slow or broke off."""
    for attempt in range(len(WAITS) + 1):
        try:
            return call()
        except Exception as error:
            broken = network(error)
            # nobody there: one more try is enough
            absent = broken is not None and type(broken).__name__ == "ConnectError"
            if (
                attempt >= (1 if absent else len(WAITS))
                or offline(error)
                or not (broken or status(error) in PASSING)
            ):
                raise
            time.sleep(min(retry_after(error) or WAITS[attempt], LONGEST))
    raise AssertionError("the last attempt returns or raises")


def offline(error: BaseException) -> bool:
    """Whether the client was told not to use the network."""
    return any(type(one).__name__ == "OfflineModeIsEnabled" for one in chain(error))


def retry_after(error: BaseException) -> float | None:
    """Seconds that the hub asks to wait."""
    for one in chain(error):
        word = getattr(getattr(one, "response", None), "headers", {}).get("Retry-After", "")
        if word.isdecimal():
            return float(word)
    return None


def reason(error: BaseException) -> str:
    """What the hub or the client said, in one line."""
    for one in chain(error):
        response = getattr(one, "response", None)
        if response is not None:
            message = (
                response.headers.get("X-Error-Message")
                or getattr(one, "server_message", None)
                or response.reason_phrase
            )
            return f"{response.status_code} {shown(message).rstrip('.')}"
    broken = network(error)
    if broken is not None:
        return f"{type(broken).__name__}: {shown(broken)}"
    said = [shown(one) for one in chain(error) if str(one).strip()] or [type(error).__name__]
    return said[0] if len(said) == 1 or said[-1] in said[0] else f"{said[0]} ({said[-1]})"


def shown(text: object) -> str:
    """What a client said, in a line that is not endless."""
    return first_line(text)[:300]


def line(
    error: BaseException,
    id: str,
    revision: str | None,
    keys: Keys,
    page: str,
    endpoint: str,
    cache: str,
) -> str:
    """One line: the repository, what was said, and what to type. `page` is where its licence is
    read.
    """
    where = f"{id} at {revision}" if revision else id
    folder = f"{keys.folder}=DIR"
    if offline(error):
        cached = f"{where}: not in the cache {cache}, and HF_HUB_OFFLINE is set"
        return f"{cached}; unset HF_HUB_OFFLINE, or set {folder}"
    code, names = status(error), {type(one).__name__ for one in chain(error)}
    login = "`hf auth login` or set HF_TOKEN"
    if "GatedRepoError" in names:
        again = login if code == 401 else "type the same command when access is granted"
        remedy = f"accept its licence at {page}, then {again}"
    elif "RevisionNotFoundError" in names:
        drop = f"or drop it ({keys.revision}=null takes the newest)"
        remedy = f"set {keys.revision} to one that is there, {drop}"
    elif "RepositoryNotFoundError" in names:
        remedy = f"correct {keys.source}, or, if it is private, {login}; or set {folder}"
    elif code == 401:
        remedy = f"the token is not accepted: {login} to a valid one, or unset it"
    elif code == 403:
        remedy = f"the token may not read it: ask for access at {page}, or {login} to one that may"
    elif code == 429:
        remedy = f"wait, then {ON}; a token ({login}) raises the limit"
    elif code is not None and code >= 500:
        remedy = f"the hub is not well: wait, then {ON}; or set {folder}"
    elif network(error) is not None:
        broken = f"{where}: {endpoint} does not answer or broke off ({reason(error)})"
        return f"{broken}; when it is reachable, {ON}; or set {folder}"
    else:
        wrong = (
            keys.source.replace("source", "config")
            if "BuilderConfig" in reason(error)
            else keys.source
        )
        remedy = f"correct {wrong}, or set {folder}"
    return f"{where}: {reason(error)}; {remedy}"
