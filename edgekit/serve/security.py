"""Who may ask, and how often: API keys and rates.

Keys come from a file, one a line: ``NAME KEY`` or ``NAME admin KEY``; ``#`` begins a comment. A key
may stand there as ``sha256:`` and its digest, so that the file does not give it away. Requests bear
it as ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekit.errors import BadData, TrustError
from edgekit.serve.refusal import Refusal

__all__ = ["ANYONE", "Caller", "Keys", "Rates", "read_keys"]

MIN_KEY: Final = 16
_MAX_FILE = 2**20
_MAX_CALLERS = 10_000


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        name: of the key; empty where no keys are set.
        admin: may load models.
    """

    name: str
    admin: bool


ANYONE: Final = Caller("", False)


@dataclass(frozen=True)
class Keys:
    """The keys that are taken: callers by the SHA-256 of their key."""

    callers: tuple[tuple[bytes, Caller], ...] = ()

    def caller(self, headers: Mapping[str, str]) -> Caller:
        """Who a request is from.

        Raises:
            Refusal: 401, no key or none that is known.
        """
        if not self.callers:
            return ANYONE
        presented = _presented(headers)
        if presented is None:
            raise Refusal(401, "a key is needed", {"WWW-Authenticate": "Bearer"})
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).digest()
        found = None
        # All are compared, each in constant time: how long it takes tells nothing of the keys.
        for known, caller in self.callers:
            if hmac.compare_digest(known, digest):
                found = caller
        if found is None:
            raise Refusal(401, "the key is not known", {"WWW-Authenticate": "Bearer"})
        return found


def _presented(headers: Mapping[str, str]) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    return headers.get("x-api-key")


def read_keys(path: Path) -> Keys:
    """Reads a file of keys.

    Raises:
        BadData: it is absent, empty, a line is none of the forms above, or a name or a key stands
            twice.
        TrustError: others than its owner may read it.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_bytes()[:_MAX_FILE].decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadData(f"the keys in {path} cannot be read: {type(error).__name__}") from error
    if stat.S_IMODE(mode) & 0o077:
        raise TrustError(f"others may read the keys in {path}", hint=f"chmod 600 {path}")
    callers: list[tuple[bytes, Caller]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if words:
            callers.append(_caller(words, f"{path}, line {number}"))
    if not callers:
        raise BadData(f"{path} holds no key", hint="a line is: NAME KEY, or: NAME admin KEY")
    if len({caller.name for _, caller in callers}) != len(callers):
        raise BadData(f"{path}: a name stands twice")
    if len({digest for digest, _ in callers}) != len(callers):
        raise BadData(f"{path}: a key stands twice, under two names")
    return Keys(tuple(callers))


def _caller(words: list[str], where: str) -> tuple[bytes, Caller]:
    if len(words) not in (2, 3) or (len(words) == 3 and words[1] != "admin"):
        raise BadData(f"{where} is neither 'NAME KEY' nor 'NAME admin KEY'")
    name, key = words[0], words[-1]
    caller = Caller(name, len(words) == 3)
    if key.startswith("sha256:"):
        try:
            digest = bytes.fromhex(key.removeprefix("sha256:"))
        except ValueError:
            digest = b""
        if len(digest) != 32:
            raise BadData(f"{where}: sha256: is followed by 64 hexadecimal digits")
        return digest, caller
    if not key.isascii():
        raise BadData(f"{where}: a header cannot bear the key; letters, digits and -_.+/= can")
    if len(key) < MIN_KEY:
        raise BadData(
            f"{where}: the key has {len(key)} characters, at least {MIN_KEY} are wanted",
            hint="python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        )
    return hashlib.sha256(key.encode()).digest(), caller


class Rates:
    """Token buckets: so many requests per second for each caller, or for each address.

    Args:
        per_second: 0 for no limit; a caller who was quiet may send one second's worth at once.
        clock: seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = per_second
        self._burst = max(1.0, per_second)
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, who: str) -> None:
        """Counts a request.

        Raises:
            Refusal: 429, with the seconds after which there is room again.
        """
        if not self._rate:
            return
        now = self._clock()
        if len(self._buckets) > _MAX_CALLERS:
            self._forget_quiet(now)
        left, at = self._buckets.get(who, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._rate)
        if left < 1:
            self._buckets[who] = (left, now)
            wait = max(1, math.ceil((1 - left) / self._rate))
            raise Refusal(429, "too many requests", {"Retry-After": str(wait)})
        self._buckets[who] = (left - 1, now)

    def _forget_quiet(self, now: float) -> None:
        """A full bucket says nothing. Where all are in use the oldest half goes."""
        kept = {
            who: bucket
            for who, bucket in self._buckets.items()
            if bucket[0] + (now - bucket[1]) * self._rate < self._burst
        }
        if len(kept) > _MAX_CALLERS:
            newest = sorted(kept.items(), key=lambda item: item[1][1])[_MAX_CALLERS // 2 :]
            kept = dict(newest)
        self._buckets = kept
