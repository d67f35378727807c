"""The settings, as frozen models. Names, types and defaults are the contract; `docs/configuration.md` has the meaning.

Durations are float seconds, sizes bytes. Models check each setting by itself; `checks` looks at how they fit together.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, model_validator

from mirrorproxy.config.addresses import ListenAddress
from mirrorproxy.config.values import (
    AT_LEAST_ONE,
    DOCKER_CONFIG,
    NO_REPEATS,
    ONE_OR_MANY,
    Abandoned,
    Duration,
    Endpoint,
    FilePath,
    Linger,
    Listen,
    MinRate,
    ParallelFrom,
    PositiveDuration,
    Proxy,
    Realm,
    RepositoryPattern,
    Secret,
    SomeSpace,
    Space,
    UserName,
    VariableName,
    YesNo,
    choice,
    whole_number,
)
from mirrorproxy.units import Size

_MINUTE = 60.0
_DAY = 86_400.0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TlsSettings(_Frozen):
    """A certificate and its key, as PEM files."""

    cert: FilePath
    key: FilePath


class ServerSettings(_Frozen):
    """How clients reach the service."""

    listen: Annotated[tuple[Listen, ...], ONE_OR_MANY, AT_LEAST_ONE, NO_REPEATS] = (ListenAddress("127.0.0.1", 5000),)
    metrics_listen: Annotated[tuple[Listen, ...], ONE_OR_MANY, NO_REPEATS] = ()
    tls: TlsSettings | None = None
    workers: Annotated[int | Literal["auto"], whole_number(1, 256, "auto")] = 1
    grace: Duration = 30.0
    write_timeout: PositiveDuration = _MINUTE


class CacheSettings(_Frozen):
    """Where content is kept, and how much. Shares are of the file system that holds `directory`."""

    directory: FilePath
    max_size: SomeSpace = Size(50 * 2**30)
    min_free: Space = Size(5 * 2**30)


class CredentialsSettings(_Frozen):
    """A name and a password for an upstream. Loading reads the file or variable named here into `password`."""

    username: UserName
    password: Secret | None = None
    password_file: FilePath | None = None
    password_env: VariableName | None = None

    @model_validator(mode="after")
    def _one_password(self) -> "CredentialsSettings":
        given = [name for name in ("password", "password_file", "password_env") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"has both {given[0]} and {given[1]}; keep one")
        if not given:
            raise ValueError("has no password; add password_file, or password_env with the name of a variable")
        return self


class DockerConfigSettings(_Frozen):
    """A Docker `config.json` to take credentials from, credential helpers included."""

    docker_config: FilePath


def _kind_of_credentials(value: object) -> str:
    if isinstance(value, DockerConfigSettings) or (isinstance(value, dict) and "docker_config" in value):
        return "file"
    return "pair" if isinstance(value, CredentialsSettings | dict) else "word"


Credentials = Annotated[
    Annotated[CredentialsSettings, Tag("pair")]
    | Annotated[DockerConfigSettings, Tag("file")]
    | Annotated[Literal["docker-config"], DOCKER_CONFIG, Tag("word")],
    Discriminator(_kind_of_credentials),
]


class UpstreamSettings(_Frozen):
    """One registry. Loading adds the `endpoints` that follow from its name, marks one upstream as the default, and has
    the defaults of `connections` and `max_fills` fit into `max_connections`.
    """

    endpoints: Annotated[tuple[Endpoint, ...], ONE_OR_MANY, AT_LEAST_ONE, NO_REPEATS]
    proxy: Proxy | None = None
    ca_file: FilePath | None = None
    credentials: Credentials | None = None
    repositories: Annotated[tuple[RepositoryPattern, ...], ONE_OR_MANY, NO_REPEATS] = ()
    default: YesNo = False
    tag_ttl: Duration = 5 * _MINUTE
    negative_ttl: Duration = 10.0
    token_realms: Annotated[tuple[Realm, ...], ONE_OR_MANY, NO_REPEATS] = ()
    connect_timeout: PositiveDuration = 10.0
    idle_timeout: PositiveDuration = 30.0
    header_timeout: PositiveDuration = 30.0
    revalidate_timeout: PositiveDuration = 5.0
    max_connections: Annotated[int, whole_number(1, 10_000)] = 32
    connections: Annotated[int, whole_number(1, 16)] = 4
    parallel_from: ParallelFrom = Size(16 * 2**20)
    min_rate: MinRate = Size(0)
    max_fills: Annotated[int, whole_number(1, 10_000)] = 16
    prefetch: Annotated[Literal["auto", "all", "off"], choice("auto", "all", "off")] = "auto"


class FillSettings(_Frozen):
    """Downloads into the cache."""

    budget: PositiveDuration = 10 * _MINUTE
    max_active: Annotated[int, whole_number(1, 10_000)] = 64
    abandoned: Abandoned = "finish"

    @property
    def abandoned_after(self) -> float | None:
        """Seconds that a download goes on without clients: 0 when it stops at once; None: to its end."""
        if isinstance(self.abandoned, Linger):
            return self.abandoned.seconds
        return None if self.abandoned == "finish" else 0.0


class PartialSettings(_Frozen):
    """What there is of downloads that did not come to their end."""

    keep: PositiveDuration = 7 * _DAY


class LogSettings(_Frozen):
    """What is written to standard error, and how."""

    level: Annotated[Literal["debug", "info", "warning", "error"], choice("debug", "info", "warning", "error")] = "info"
    format: Annotated[Literal["auto", "json", "text"], choice("auto", "json", "text")] = "auto"
    access: YesNo = True


class Settings(_Frozen):
    """Everything that can be set. `upstreams` is keyed by the registry's name, one of them is the default."""

    server: ServerSettings = ServerSettings()
    cache: CacheSettings
    upstreams: dict[str, UpstreamSettings]
    fills: FillSettings = FillSettings()
    partials: PartialSettings = PartialSettings()
    log: LogSettings = LogSettings()

    @property
    def default_registry(self) -> str:
        """The name of the registry that answers when a client names none."""
        return next(name for name, upstream in self.upstreams.items() if upstream.default)
