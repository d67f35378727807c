"""What a single setting may be: the types of the leaves, each with the words for what is wrong with a value.

A setting comes as text (from file, environment and flags) or, in a program, as what it is: both are read here.
"""

import math
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, PlainValidator, SecretStr

from mirrorproxy.config.addresses import ListenAddress, parse_endpoint, parse_proxy, parse_realm
from mirrorproxy.config.problems import did_you_mean, shown
from mirrorproxy.errors import Invalid
from mirrorproxy.manifests import PLATFORM
from mirrorproxy.names import image
from mirrorproxy.units import (
    Share,
    Size,
    format_duration,
    format_rate,
    parse_duration,
    parse_rate,
    parse_share,
    parse_size,
    parse_space,
)

MASK = "**********"
"""What stands for a secret wherever one would be printed."""

_PATTERN = re.compile(r"[a-z0-9*][a-z0-9*._/-]*")
_IMAGE_PATTERN = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9*])[a-z0-9*._:/-]*(?::[A-Za-z0-9_*.-]+)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_YES_NO = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_LINGER = re.compile(r"(\{ ?)?linger(?: ?: ?| )([^ {}]+)(?(1) ?\})")  # as YAML has it, with and without braces
_SMALLEST_PARALLEL = 2**20  # below that a connection more costs more round trips than it saves
_SMALLEST_RATE = Size(10**5)  # a second: at that, 1 TB takes four months
_LARGEST_MIN_RATE = 10**9  # no single connection brings more: each would be taken for slow, for ever


@dataclass(frozen=True, slots=True)
class Written:
    """What a type of settings is called in docs/configuration.md, and examples of how it is written there."""

    name: str
    examples: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Linger:
    """To go on for so many seconds without clients."""

    seconds: float


def _word(value: object) -> str:
    """`value`, which must be text, and not empty. It is not shown: it may be a secret."""
    if value is None or value == "":
        raise ValueError("is empty")
    if not isinstance(value, str):
        given = "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else "this"
        raise ValueError(f"must be a single value, not {given}")
    return value


def _text(parse: Callable[[str], object], *ready: type) -> PlainValidator:
    """Text that `parse` reads, or what is of a `ready` type already."""
    return PlainValidator(lambda value: value if isinstance(value, ready) else parse(_word(value)))


def _space(value: object) -> Size | Share:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Size(value)
    return value if isinstance(value, Share) else parse_space(_word(value))


def _some_space(value: object) -> Size | Share:
    space = _space(value)
    if space in (Size(0), Share(0)):
        raise ValueError("is nothing; a cache needs some room")
    return space


def _parallel_from(value: object) -> Size:
    size = Size(value) if isinstance(value, int) and not isinstance(value, bool) else parse_size(_word(value))
    if size < _SMALLEST_PARALLEL:
        raise ValueError(f"{size} is too small to share; write 1MiB or more")
    return size


def _min_rate(value: object) -> Size:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        rate = Size(value)
    else:
        text = _word(value)
        rate = Size(0) if text == "0" else parse_rate(text)
    if rate > _LARGEST_MIN_RATE:
        raise ValueError(
            f"{format_rate(rate)} is more than a connection brings, so that each would be made anew for ever; write "
            f"{format_rate(_LARGEST_MIN_RATE)} or less, or 0 for none"
        )
    return rate


def _some_rate(value: object) -> Size:
    rate = Size(value) if isinstance(value, int) and not isinstance(value, bool) else parse_rate(_word(value))
    if rate < _SMALLEST_RATE:
        raise ValueError(f"{format_rate(rate)} would take for ever; write {format_rate(_SMALLEST_RATE)} or more")
    return rate


def _duration(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    text = _word(value)
    if re.fullmatch(r"[0-9]{1,15}", text):
        if int(text) == 0:
            return 0.0
        raise ValueError(f"{shown(text)} has no unit; write {text}s for seconds or {text}m for minutes")
    return parse_duration(text)


def _positive_duration(value: object) -> float:
    seconds = _duration(value)
    if seconds == 0:
        raise ValueError("must be longer than 0s")
    return seconds


def _abandoned(value: object) -> str | Linger:
    """`finish`, `stop`, or the mapping `{linger: 60s}`: a variable has it as text, `linger: 60s`."""
    if isinstance(value, Linger):
        return value
    if isinstance(value, dict):
        if list(value) != ["linger"]:
            raise ValueError("must be finish, stop or {linger: 60s}")
        text = value["linger"]
    else:
        word = _word(value)
        if word in ("finish", "stop"):
            return word
        match = _LINGER.fullmatch(word)
        if not match:
            raise ValueError(f"{shown(word)} is not known here; write finish, stop or {{linger: 60s}}")
        text = match[2]
    seconds = _duration(text)
    if seconds == 0:
        raise ValueError("to linger for 0s is to stop; write stop, or a longer time")
    return Linger(seconds)


def _written_abandoned(value: str | Linger) -> str | dict[str, str]:
    return {"linger": format_duration(value.seconds)} if isinstance(value, Linger) else value


def _yes_no(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = _word(value)
    if word.lower() not in _YES_NO:
        raise ValueError(f"{shown(word)} is neither true nor false")
    return _YES_NO[word.lower()]


def _pattern(text: str) -> str:
    if not _PATTERN.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not a pattern of repositories; write library/alpine, team/* or **, in lower case"
        )
    return text


def _image_pattern(text: str) -> str:
    if not _IMAGE_PATTERN.fullmatch(text):
        raise ValueError(
            f"{shown(text)} is not a pattern of images; write ghcr.io/team/*, ghcr.io/team/app:pr-* or **; "
            "nothing but * and ** stands for anything else"
        )
    return text


def _image_name(text: str) -> str:
    try:
        repository, found = image(text)
    except Invalid as error:
        raise ValueError(f"{shown(text)} is not the name of an image; write docker.io/library/nginx:1.27") from error
    return f"{repository}{'@' if ':' in found else ':'}{found}"


def _platform(text: str) -> str:
    if not PLATFORM.fullmatch(text):
        raise ValueError(f"{shown(text)} is not a platform; write linux/amd64 or linux/arm64/v8")
    return text


def _watermark(value: object) -> Share:
    share = value if isinstance(value, Share) else parse_share(_word(value))
    if not share.percent:
        raise ValueError("is nothing; nothing could stay")
    return share


def _named(value: object) -> object:
    return {"image": value} if isinstance(value, str) else value


def _user_name(text: str) -> str:
    if ":" in text:
        raise ValueError("may not have a colon in it (RFC 7617)")
    return text


def _variable(text: str) -> str:
    if not _VARIABLE.fullmatch(text):
        raise ValueError("must be the name of an environment variable, such as HUB_PASSWORD")
    return text


def _secret(text: str) -> SecretStr:
    if text == MASK:
        raise ValueError("is the mask that `config show` prints instead of a password; put the password here")
    return SecretStr(text)


def _docker_config(text: str) -> str:
    if text != "docker-config":
        raise ValueError("must be {username: ..., password_file: ...}, {docker_config: FILE} or the word docker-config")
    return text


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _at_least_one(values: tuple[object, ...]) -> tuple[object, ...]:
    if not values:
        raise ValueError("is an empty list; name one at least, or leave the key out")
    return values


def _without_repeats(values: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    for position, value in enumerate(values):
        is_any_port = isinstance(value, ListenAddress) and not value.port and not value.path
        if value in values[:position] and not is_any_port:  # two times any free port are two ports
            raise ValueError(f"{value} is listed twice; keep one")
    return values


def whole_number(lowest: int, highest: int, word: str | None = None) -> PlainValidator:
    """A whole number within limits, or the one `word` that may stand for a number."""
    accepted = f"write a number from {lowest} to {highest}" + (f", or {word}" if word else "")

    def read(value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            number = value
        elif word and value == word:
            return word
        elif re.fullmatch(r"-?[0-9]{1,15}", _word(value)):
            number = int(_word(value))
        else:
            raise ValueError(f"{shown(value)} is not a whole number; {accepted}")
        if not lowest <= number <= highest:
            raise ValueError(f"{number} is out of range; {accepted}")
        return number

    return PlainValidator(read)


def choice(*words: str) -> PlainValidator:
    """One of a few words."""

    def read(value: object) -> str:
        word = _word(value)
        if word not in words:
            accepted = f"; write {', '.join(words[:-1])} or {words[-1]}"
            raise ValueError(f"{shown(word)} is not known here{did_you_mean(word.lower(), words) or accepted}")
        return word

    return PlainValidator(read)


ONE_OR_MANY = BeforeValidator(_one_or_many)
AT_LEAST_ONE = AfterValidator(_at_least_one)
A_NAME_WILL_DO = BeforeValidator(_named)
NO_REPEATS = AfterValidator(_without_repeats)
DOCKER_CONFIG = _text(_docker_config)

_ADDRESS = Written(
    "address", ("127.0.0.1:5000", "[::1]:5000", "localhost:5000", "0.0.0.0:5000", "unix:/run/mirrorproxy.sock")
)
_URL = Written("URL")
_WORD = Written("text")
_SIZE = Written("size", ("50GiB", "500MB", "64MiB", "1073741824"), "without a unit: bytes")
_SPACE = Written("size or share", ("50GiB", "80%"), "a share is of the file system that holds the cache")
_RATE = Written("rate, or `0`", ("10kB/s", "4MiB/s", "0"), "bytes a second")
_DURATION = Written("duration", ("500ms", "30s", "10m", "1h30m", "7d", "0s"), "the unit is needed")

Listen = Annotated[ListenAddress, _text(ListenAddress.parse, ListenAddress), PlainSerializer(str), _ADDRESS]
Endpoint = Annotated[str, _text(parse_endpoint), _URL]
Proxy = Annotated[str, _text(parse_proxy), _URL]
Realm = Annotated[
    str, _text(parse_realm), Written("host or origin", ("auth.example.com", "https://auth.example.com:8443"))
]
RepositoryPattern = Annotated[str, _text(_pattern), Written("pattern", ("library/alpine", "team/*", "**"))]
ImagePattern = Annotated[
    str, _text(_image_pattern), Written("pattern of images", ("ghcr.io/team/*", "ghcr.io/team/app:pr-*", "**"))
]
ImageName = Annotated[
    str,
    _text(_image_name),
    Written(
        "image",
        ("docker.io/library/nginx:1.27", "quay.io/team/app"),
        "with a tag or a digest, else `latest`; `nginx` is `docker.io/library/nginx:latest`",
    ),
]
PlatformName = Annotated[str, _text(_platform), Written("platform", ("linux/amd64", "linux/arm64/v8"))]
Watermark = Annotated[
    Share, PlainValidator(_watermark), PlainSerializer(str), Written("share", ("98%",), "of what the cache may take")
]
UserName = Annotated[str, _text(_user_name), _WORD]
VariableName = Annotated[str, _text(_variable), _WORD]
Secret = Annotated[SecretStr, _text(_secret, SecretStr), PlainSerializer(lambda _: MASK), _WORD]
FilePath = Annotated[Path, _text(Path, Path)]
Space = Annotated[Size | Share, PlainValidator(_space), PlainSerializer(str), _SPACE]
SomeSpace = Annotated[Size | Share, PlainValidator(_some_space), PlainSerializer(str), _SPACE]
ParallelFrom = Annotated[Size, PlainValidator(_parallel_from), PlainSerializer(str), _SIZE]
MinRate = Annotated[
    Size, PlainValidator(_min_rate), PlainSerializer(lambda rate: format_rate(rate) if rate else "0"), _RATE
]
SomeRate = Annotated[
    Size,
    PlainValidator(_some_rate),
    PlainSerializer(format_rate),
    Written("rate", ("50MB/s", "4MiB/s"), "bytes a second"),
]
Abandoned = Annotated[
    Literal["finish", "stop"] | Linger,
    PlainValidator(_abandoned),
    PlainSerializer(_written_abandoned),
    Written("`finish`, `stop`, `{linger: 60s}`"),
]
Duration = Annotated[float, PlainValidator(_duration), PlainSerializer(format_duration), _DURATION]
PositiveDuration = Annotated[float, PlainValidator(_positive_duration), PlainSerializer(format_duration), _DURATION]
YesNo = Annotated[bool, PlainValidator(_yes_no)]
