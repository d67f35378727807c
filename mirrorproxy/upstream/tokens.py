"""Bearer tokens, kept until a little before they expire, and asked for once however many wait.

Held by aiocache's memory backend, which has no bound, while repository names come from clients: so the keys are kept
in order of use here, and the oldest token goes when there are too many. Source: the token authentication specification
of distribution.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from aiocache import SimpleMemoryCache

from mirrorproxy.errors import BadAnswer
from mirrorproxy.tasks import SingleFlight

_MAX_TOKENS = 2_000  # of 2 to 8 KiB each
_DEFAULT_LIFETIME = 60.0  # seconds, where the token service does not say (token specification, expires_in)
_LONGEST_LIFETIME = 86_400.0


@dataclass(frozen=True, slots=True)
class Token:
    """A token and for how many seconds after it was asked for it is good."""

    value: str = field(repr=False)
    lifetime: float

    @property
    def keep(self) -> float:
        """Seconds to use it: its lifetime less a tenth, or 10 s if that is more, but half of it at least."""
        return max(self.lifetime - max(10.0, self.lifetime / 10), self.lifetime / 2)


def parse_token(body: bytes) -> Token:
    """The token in a token service's answer, `token` or `access_token`. Raises `BadAnswer`."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise BadAnswer("the token service sent something that is not JSON") from None
    value = (answer.get("token") or answer.get("access_token")) if isinstance(answer, dict) else None
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value or not value:
        raise BadAnswer("the token service sent no token")
    lifetime = answer.get("expires_in")
    good = isinstance(lifetime, int | float) and not isinstance(lifetime, bool) and lifetime > 0
    return Token(value, min(float(lifetime), _LONGEST_LIFETIME) if good else _DEFAULT_LIFETIME)


class Tokens:
    """The tokens of an upstream."""

    def __init__(self, limit: int = _MAX_TOKENS) -> None:
        self._cache = SimpleMemoryCache(timeout=None)
        self._limit = limit
        self._used: OrderedDict[str, None] = OrderedDict()
        self._asking = SingleFlight[str, str]()

    async def cached(self, key: str) -> str | None:
        """The token kept under `key`, if it is good still."""
        value: str | None = await self._cache.get(key)
        if value is None:
            self._used.pop(key, None)
        else:
            self._used.move_to_end(key)
        return value

    async def get(
        self, key: str, ask: Callable[[], Coroutine[None, None, Token]], *, refused: str | None = None
    ) -> str:
        """The token kept under `key` unless it is the one that was `refused`, else the one that `ask()` gets.

        One `ask` at a time for a key, whatever the number of callers. Raises what `ask` raises.
        """
        value = await self.cached(key)
        if value is not None and value != refused:
            return value

        async def fetch() -> str:
            token = await ask()
            await self._keep(key, token)
            return token.value

        value, _ = await self._asking.do(key, fetch)
        return value

    async def _keep(self, key: str, token: Token) -> None:
        await self._cache.set(key, token.value, ttl=token.keep)
        self._used[key] = None
        self._used.move_to_end(key)
        while len(self._used) > self._limit:
            oldest, _ = self._used.popitem(last=False)
            await self._cache.delete(oldest)

    def __len__(self) -> int:
        return len(self._used)

    async def aclose(self) -> None:
        """Stop asking, and forget all tokens."""
        await self._asking.aclose()
        for key in list(self._used):
            await self._cache.delete(key)  # one by one: clear() leaves the timers running
        self._used.clear()
