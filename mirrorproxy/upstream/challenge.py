"""What a 401 asks for: the `WWW-Authenticate` header.

Sources: RFC 9110, 11.6.1; for Bearer the token authentication specification of distribution.

Reading is lenient where the meaning is plain (missing commas, an unfinished quoted string) and never fails: what cannot
be understood is left out. One pass over the text, whatever is in it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(_WORD)
_PARAMETER = re.compile(rf'({_WORD})[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)(?:"|\\?$)|([^\s,"]+))', re.DOTALL)
_TOKEN68 = re.compile(r"[ \t]+[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")
_BETWEEN = re.compile(r"[\s,]*")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate that a server offers: `scheme` in lower case, names of parameters in lower case."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def realm(self) -> str:
        """Bearer: the URL of the token service. Empty where it is missing."""
        return self.parameters.get("realm", "")

    @property
    def service(self) -> str:
        """Bearer: what the token service is told that the token is for. Empty where it is missing."""
        return self.parameters.get("service", "")

    @property
    def scope(self) -> str:
        """Bearer: what the token has to allow. Empty where it is missing."""
        return self.parameters.get("scope", "")


def parse(headers: Iterable[str]) -> list[Challenge]:
    """All challenges of all `WWW-Authenticate` headers of a response, in order."""
    return [challenge for header in headers for challenge in _challenges(header)]


def choose(challenges: Iterable[Challenge]) -> Challenge | None:
    """The first Bearer challenge with a realm, else the first Basic one, else None."""
    offered = list(challenges)
    bearer = (challenge for challenge in offered if challenge.scheme == "bearer" and challenge.realm)
    basic = (challenge for challenge in offered if challenge.scheme == "basic")
    return next(bearer, None) or next(basic, None)


def _challenges(header: str) -> list[Challenge]:
    found: list[Challenge] = []
    parameters: dict[str, str] = {}
    at = 0
    while (at := _end(_BETWEEN, header, at)) < len(header):
        if match := _PARAMETER.match(header, at):
            name, quoted, token = match.groups()
            parameters.setdefault(name.lower(), token if quoted is None else _ESCAPED.sub(r"\1", quoted))
            at = match.end()
        elif match := _SCHEME.match(header, at):
            parameters = {}  # of the challenge that begins here
            found.append(Challenge(match.group().lower(), parameters))
            at = _end(_TOKEN68, header, match.end())
        else:
            at += 1  # nothing that the grammar knows
    return found


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Where the match of `pattern` at `at` ends, `at` where there is none."""
    return match.end() if (match := pattern.match(text, at)) else at
