"""The settings, as frozen models. Names, types and defaults are the contract.

The text below each setting is what users read of it: `make docs` puts it into docs/configuration.md, with its type and
default.

Durations are float seconds, sizes bytes. Models check each setting by itself; `checks` looks at how they fit together.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, model_validator

from mirrorproxy.config.addresses import ListenAddress
from mirrorproxy.config.values import (
    A_NAME_WILL_DO,
    AT_LEAST_ONE,
    DOCKER_CONFIG,
    NO_REPEATS,
    ONE_OR_MANY,
    Abandoned,
    Duration,
    Endpoint,
    FilePath,
    ImageName,
    ImagePattern,
    Linger,
    Listen,
    MinRate,
    ParallelFrom,
    PlatformName,
    PositiveDuration,
    Proxy,
    Realm,
    RepositoryPattern,
    Secret,
    SomeRate,
    SomeSpace,
    Space,
    UserName,
    VariableName,
    Watermark,
    Written,
    YesNo,
    choice,
    whole_number,
)
from mirrorproxy.units import Share, Size

_MINUTE = 60.0
_DAY = 86_400.0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TlsSettings(_Frozen):
    """A certificate and its key, as PEM files."""

    cert: FilePath
    """Certificate chain (PEM) for HTTPS. Of the ciphers that both sides know, the client's order counts. Read again
    when the file changes; switching TLS on or off takes a restart.
    """
    key: FilePath
    """Its private key (PEM)."""


class ServerSettings(_Frozen):
    """How clients reach the service."""

    listen: Annotated[tuple[Listen, ...], ONE_OR_MANY, AT_LEAST_ONE, NO_REPEATS] = (ListenAddress("127.0.0.1", 5000),)
    """Where clients connect. Port 0 is any free one."""
    metrics_listen: Annotated[tuple[Listen, ...], ONE_OR_MANY, NO_REPEATS] = ()
    """Where `/metrics`, `/livez`, `/readyz` and `/healthz` are, over plain HTTP and with nothing else beside them.
    Where one is given, clients at `server.listen` do not see `/metrics` any more; the health pages are at both.
    """
    tls: TlsSettings | None = None
    workers: Annotated[int | Literal["auto"], whole_number(1, 256, "auto")] = 1
    """Processes that answer clients, beside one that downloads and keeps the cache; `auto`: one for each core (of a
    container's limit, if that is less). `1`: one process does everything. See [capacity](capacity.md#workers).
    """
    grace: Duration = 30.0
    """How long running transfers may take to finish after SIGTERM."""
    write_timeout: PositiveDuration = _MINUTE
    """A client that takes no byte for that long is cut off."""


class CacheSettings(_Frozen):
    """Where content is kept, and how much. Shares are of the file system that holds `directory`."""

    directory: FilePath
    """Where content is kept."""
    max_size: SomeSpace = Size(50 * 2**30)
    """What the cache may fill."""
    min_free: Space = Size(5 * 2**30)
    """What it leaves free on its file system."""
    high_watermark: Watermark = Share(98)
    """When so much of what it may take is taken, content goes, in the background."""
    low_watermark: Watermark = Share(95)
    """Until no more than this is taken. Less than `high_watermark`. Room for a download is made at once besides, where
    there is none.
    """
    verify: Annotated[Literal["off", "on-read"], choice("off", "on-read")] = "off"
    """`on-read`: hash a blob each time that its file is opened, before the first byte is served; what stays open (512
    files) is not hashed again. What is wrong is a miss. See [storage](storage.md#what-can-go-wrong-with-the-disk).
    """


class CredentialsSettings(_Frozen):
    """A name and a password for an upstream. Loading reads the file or variable named here into `password`."""

    username: UserName
    """User."""
    password: Secret | None = None
    """Password; rather keep it in a file or a variable."""
    password_file: FilePath | None = None
    """File with the password; a newline at its end does not count."""
    password_env: VariableName | None = None
    """Name of the environment variable with the password."""

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
    """A Docker `config.json` to log in with, credential helpers included; instead of the others."""


def _kind_of_credentials(value: object) -> str:
    if isinstance(value, DockerConfigSettings) or (isinstance(value, dict) and "docker_config" in value):
        return "file"
    return "pair" if isinstance(value, CredentialsSettings | dict) else "word"


Credentials = Annotated[
    Annotated[CredentialsSettings, Tag("pair")]
    | Annotated[DockerConfigSettings, Tag("file")]
    | Annotated[Literal["docker-config"], DOCKER_CONFIG, Tag("word")],
    Discriminator(_kind_of_credentials),
    Written("`docker-config`, or the keys below"),
]


class UpstreamSettings(_Frozen):
    """One registry. Loading adds the `endpoints` that follow from its name, marks one upstream as the default, and has
    the defaults of `connections` and `max_fills` fit into `max_connections`.
    """

    endpoints: Annotated[tuple[Endpoint, ...], ONE_OR_MANY, AT_LEAST_ONE, NO_REPEATS]
    """Where to ask, in this order; for docker.io `https://registry-1.docker.io`. May have a path:
    `http://site-cache:5000/docker.io` is asked as `/docker.io/v2/...`.
    """
    proxy: Proxy | None = None
    """HTTP proxy on the way. Without it `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` count; one with a
    password belongs there.
    """
    ca_file: FilePath | None = None
    """Certificates (PEM) to trust besides the system's."""
    credentials: Credentials | None = None
    """Log in. `docker-config` takes what `docker login` left for the user that runs mirrorproxy."""
    repositories: Annotated[tuple[RepositoryPattern, ...], ONE_OR_MANY, NO_REPEATS] = ()
    """What may be served: names, with `*` for anything but a slash and `**` for anything (`team/*`, `**`); none:
    everything. Needed with credentials unless every `server.listen` is a loopback address or a unix socket, since
    whoever reaches the port pulls with them.
    """
    default: YesNo = False
    """Who answers when a client names no registry, as the Docker daemon does. Without a mark: the only one, else
    docker.io; where neither is so, one has to be marked.
    """
    tag_ttl: Duration = 5 * _MINUTE
    """How long a tag is believed before it is looked up again; `0s`: ask each time."""
    negative_ttl: Duration = 10.0
    """How long "not there" is believed; `0s`: not at all."""
    token_realms: Annotated[tuple[Realm, ...], ONE_OR_MANY, NO_REPEATS] = ()
    """Token services to trust besides those on the registry's own domain: `auth.example.com`,
    `https://auth.example.com:8443`.
    """
    connect_timeout: PositiveDuration = 10.0
    """To connect, TLS included."""
    idle_timeout: PositiveDuration = 30.0
    """For the next bytes of a body."""
    header_timeout: PositiveDuration = 30.0
    """Until the headers of an answer, connecting included."""
    revalidate_timeout: PositiveDuration = 5.0
    """For the check of a tag while a copy of it is at hand."""
    max_connections: Annotated[int, whole_number(1, 10_000)] = 32
    """Requests at the same time: so many for blobs, and so many for everything else."""
    connections: Annotated[int, whole_number(1, 16)] = 4
    """Connections for one blob, 1 to 16. A download starts with one, and adds one as long as that makes it faster; `1`:
    never several. At most `max_connections`, and the default never more.
    """
    parallel_from: ParallelFrom = Size(16 * 2**20)
    """The smallest blob that several connections may fetch; `1MiB` or more."""
    min_rate: MinRate = Size(0)
    """A connection that brings less, on average over `idle_timeout`, is made anew, and its download goes on where it
    was; `0`: however slow. A link that is slow all the time never fails for it.
    """
    max_fills: Annotated[int, whole_number(1, 10_000)] = 16
    """Downloads at the same time; further ones wait, those first that clients ask for. The default is never more than
    `max_connections`, which all of them share.
    """
    prefetch: Annotated[Literal["auto", "all", "off"], choice("auto", "all", "off")] = "auto"
    """Fetch layers before the client asks for them. `auto`: those after the first one that it asks for; `all`: all of
    them, with the manifest.
    """


class FillSettings(_Frozen):
    """Downloads into the cache."""

    budget: PositiveDuration = 10 * _MINUTE
    """How long a download may go without progress, retries included, before it fails. Longer than `idle_timeout` and
    `header_timeout` of every registry.
    """
    max_active: Annotated[int, whole_number(1, 10_000)] = 64
    """Downloads at the same time, of all registries; further ones wait."""
    max_waiting: Annotated[int, whole_number(0, 1_000_000)] = 1024
    """Downloads that wait for their turn, of one registry no more than 16 for each of its `max_fills`; a request that
    would begin one more is answered with 503 and `Retry-After`.
    """
    max_readers: Annotated[int, whole_number(1, 1_000_000)] = 10_000
    """Clients that get, or wait for, the bytes of downloads at the same time; one more is answered with 503 and
    `Retry-After`. What is cached is served to any number.
    """
    abandoned: Abandoned = "finish"
    """What becomes of a download when all its clients are gone: it goes on to its end, stops at once, or goes on for so
    long. What came is kept, and continued at the next request. `MIRRORPROXY__FILLS__ABANDONED` takes `linger: 60s`.
    """

    @property
    def abandoned_after(self) -> float | None:
        """Seconds that a download goes on without clients: 0 when it stops at once; None: to its end."""
        if isinstance(self.abandoned, Linger):
            return self.abandoned.seconds
        return None if self.abandoned == "finish" else 0.0


class PartialSettings(_Frozen):
    """What there is of downloads that did not come to their end."""

    keep: PositiveDuration = 7 * _DAY
    """How long what came of a download that did not end is kept while nobody asks for the rest. It goes sooner, oldest
    first, when space is short.
    """
    max_count: Annotated[int, whole_number(0, 1_000_000)] = 1000
    """How many of them are kept; the oldest go first."""


class RetentionRule(_Frozen):
    """Which tags go before there is want of room."""

    match: ImagePattern
    """Which images: names with the registry, `*` for anything but a slash and `**` for anything, all else for itself
    (there is no `?` or `[12]`); without a tag, all of these repositories. The first rule that fits decides.
    """
    unused_for: PositiveDuration | None = None
    """What was not pulled for so long goes, but for those that `keep` keeps."""
    keep: Annotated[int, whole_number(1, 100_000)] | None = None
    """So many tags of each repository stay, those that were last pointed at what they point at. Without `unused_for`
    the others go at once.
    """

    @model_validator(mode="after")
    def _says_something(self) -> "RetentionRule":
        if self.unused_for is None and self.keep is None:
            raise ValueError("says nothing; add unused_for: 30d, or keep: 10")
        return self


class PinnedImage(_Frozen):
    """An image that stays, for one platform."""

    image: ImageName
    """Which, with registry and tag or digest: `docker.io/library/nginx:1.27`."""
    platform: PlatformName | None = None
    """The only one that has to stay, of an image for several: `linux/arm64`."""


class ScrubSettings(_Frozen):
    """The check of all that is kept, in the background."""

    every: Duration = 7 * _DAY
    """From the beginning of one pass over all that is kept to that of the next; `0s`: never."""
    rate: SomeRate = Size(50 * 10**6)
    """How much is read a second at most; `100kB/s` or more."""


class LogSettings(_Frozen):
    """What is written: what the service says of itself to standard error, the access log to standard output."""

    level: Annotated[Literal["debug", "info", "warning", "error"], choice("debug", "info", "warning", "error")] = "info"
    """The least that is written to standard error. It takes no line from the access log; `debug` adds those of health
    pages and `/metrics`."""
    format: Annotated[Literal["auto", "json", "text"], choice("auto", "json", "text")] = "auto"
    """`auto`: text on a terminal, else JSON."""
    access: YesNo = True
    """The access log: one line for each request, but for `/livez`, `/readyz`, `/healthz` and `/metrics` where the
    answer is 200."""


class Settings(_Frozen):
    """Everything that can be set. `upstreams` is keyed by the registry's name, one of them is the default."""

    server: ServerSettings = ServerSettings()
    cache: CacheSettings
    upstreams: dict[str, UpstreamSettings]
    """The registries that are served, by the name that clients use (`ghcr.io`, `registry.example.com:5000`). No other
    is ever asked. `docker.io`, `index.docker.io` and `registry-1.docker.io` are one registry. A file (or
    `MIRRORPROXY__UPSTREAMS`) that names any replaces the built-in ones: docker.io, ghcr.io, quay.io, registry.k8s.io,
    gcr.io, mcr.microsoft.com and public.ecr.aws.
    """
    fills: FillSettings = FillSettings()
    partials: PartialSettings = PartialSettings()
    retention: tuple[RetentionRule, ...] = ()
    """What goes for its age: a list of rules, also where it is one. `MIRRORPROXY__RETENTION` takes it as JSON. See
    [storage](storage.md#what-stays-and-what-goes).
    """
    pins: Annotated[tuple[Annotated[PinnedImage, A_NAME_WILL_DO], ...], ONE_OR_MANY, NO_REPEATS] = ()
    """Images that never go, with all that they need: a list of names, or of `{image: NAME, platform: linux/arm64}`.
    `MIRRORPROXY__PINS` takes names with commas between, or JSON.
    """
    scrub: ScrubSettings = ScrubSettings()
    log: LogSettings = LogSettings()

    @property
    def default_registry(self) -> str:
        """The name of the registry that answers when a client names none."""
        return next(name for name, upstream in self.upstreams.items() if upstream.default)
