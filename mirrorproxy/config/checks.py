"""How settings fit together, where each is right by itself. Every refusal says what to change."""

import re
from urllib.parse import urlsplit

from mirrorproxy.config.addresses import ListenAddress
from mirrorproxy.config.registries import DOCKER_HUB
from mirrorproxy.config.settings import Settings, UpstreamSettings
from mirrorproxy.config.tree import Tree
from mirrorproxy.patterns import expression
from mirrorproxy.units import Size, format_duration

_SMALL_CACHE = 16 << 20  # bytes


def check_together(tree: Tree, settings: Settings) -> Settings:
    """The settings with defaults that fit the rest: one upstream marked as the default, and none that would have more
    connections than it may. What does not fit together is noted in the tree.

    A check whose subject was found wrong already is left out: its answer would be about something nobody wrote.
    """
    _check_own_ports(tree, settings)
    for name, upstream in settings.upstreams.items():
        _check_exposure(tree, settings, name, upstream)
        _check_patterns(tree, name, upstream)
        _check_loops(tree, settings, name, upstream)
        _warn_of_clear_text(tree, name, upstream)
        _check_budget(tree, settings, name, upstream)
        _warn_of_long_timeouts(tree, name, upstream)
        _check_connections(tree, name, upstream)
    _warn_of_a_small_cache(tree, settings)
    _check_watermarks(tree, settings)
    _check_pins(tree, settings)
    _check_rules(tree, settings)
    return _with_default(tree, _with_fewer_connections(tree, settings))


def _check_own_ports(tree: Tree, settings: Settings) -> None:
    """One address answers in one way: to everybody, or to those who watch."""
    key = ("server", "metrics_listen")
    for position, address in enumerate(settings.server.metrics_listen):
        if address in settings.server.listen and (address.path or address.port) and not tree.is_wrong(key):
            tree.problem((*key, position), f"{address} is in server.listen too; give the metrics a port of their own")


def _warn_of_a_small_cache(tree: Tree, settings: Settings) -> None:
    """A unit that was mistaken: no image fits, and all passes through."""
    size = settings.cache.max_size
    if isinstance(size, Size) and size < _SMALL_CACHE:
        tree.warning(("cache", "max_size"), f"{size} is less than most layers take, so that hardly anything is kept")


def _check_watermarks(tree: Tree, settings: Settings) -> None:
    """Eviction ends below where it begins, or it would never end."""
    high, low = settings.cache.high_watermark, settings.cache.low_watermark
    wrong = any(tree.is_wrong(("cache", f"{which}_watermark")) for which in ("high", "low"))
    if low.percent >= high.percent and not wrong:
        which = "low" if tree.get(("cache", "low_watermark")) is not None else "high"
        tree.problem(
            ("cache", f"{which}_watermark"), f"the low one, {low}, must be less than the high one, {high}; change one"
        )


def _check_pins(tree: Tree, settings: Settings) -> None:
    """What no upstream serves can never be complete."""
    for position, pin in enumerate(settings.pins):
        registry = pin.image.partition("/")[0]
        if registry not in settings.upstreams:
            tree.warning(("pins", position), f"{registry} is not one of the upstreams, so this image is never fetched")


def _check_rules(tree: Tree, settings: Settings) -> None:
    """A rule that nothing can match is a mistake that would be seen when the disk is full."""
    for position, rule in enumerate(settings.retention):
        key = ("retention", position, "match")
        registry, slash, _ = rule.match.partition("/")
        if any(rule.match == earlier.match for earlier in settings.retention[:position]):
            tree.warning(key, f"{rule.match} is in an earlier rule too, which decides; this one is never asked")
        elif "**" in registry:
            continue
        elif not slash or not any(re.fullmatch(expression(registry), name) for name in settings.upstreams):
            tree.warning(
                key,
                f"{rule.match} matches nothing, since {registry} is not one of the upstreams; write the registry first "
                f"(ghcr.io/team/*), or **/ for all of them",
            )


def _check_exposure(tree: Tree, settings: Settings, name: str, upstream: UpstreamSettings) -> None:
    """Whoever reaches the port may pull whatever the upstream's credentials open: the operator has to say so."""
    key = ("upstreams", name, "credentials")
    exposed = [str(address) for address in settings.server.listen if not address.is_loopback]
    known = not any(tree.is_wrong(other) for other in (("server", "listen"), (*key[:2], "repositories")))
    if upstream.credentials is not None and not upstream.repositories and exposed and known:
        tree.problem(
            key,
            f"whoever reaches {', '.join(exposed)} could pull private images with these credentials; add repositories: "
            'with patterns of what may be served (["team/*"]), or listen on 127.0.0.1 alone',
        )


def _check_patterns(tree: Tree, name: str, upstream: UpstreamSettings) -> None:
    """`alpine` is library/alpine on Docker Hub, so that a pattern of a single word would match nothing there."""
    for position, pattern in enumerate(upstream.repositories):
        if name == DOCKER_HUB and "/" not in pattern and "**" not in pattern:
            key = ("upstreams", name, "repositories", position)
            tree.problem(
                key, f"{pattern} matches nothing, as Docker Hub's own images are in library/; write library/{pattern}"
            )


def _check_loops(tree: Tree, settings: Settings, name: str, upstream: UpstreamSettings) -> None:
    """An endpoint that is the service's own address would have it wait for itself."""
    listening = (*settings.server.listen, *settings.server.metrics_listen)
    own = {(address.host, address.port) for address in listening if _has_fixed_port(address)}
    for position, endpoint in enumerate(upstream.endpoints):
        url = urlsplit(endpoint)
        port = url.port or (443 if url.scheme == "https" else 80)
        key = ("upstreams", name, "endpoints")
        if (url.hostname, port) in own and not tree.is_wrong(("server", "listen")):
            tree.problem((*key, position), f"{endpoint} is an address that this service listens on itself")


def _has_fixed_port(address: ListenAddress) -> bool:
    return address.path is None and address.port != 0


def _warn_of_clear_text(tree: Tree, name: str, upstream: UpstreamSettings) -> None:
    key = ("upstreams", name, "endpoints")
    for position, endpoint in enumerate(upstream.endpoints):
        url = urlsplit(endpoint)
        is_local = ListenAddress(url.hostname or "").is_loopback
        if upstream.credentials is not None and url.scheme == "http" and not is_local:
            tree.warning((*key, position), f"{endpoint} is sent the credentials in clear text; use https")


def _check_budget(tree: Tree, settings: Settings, name: str, upstream: UpstreamSettings) -> None:
    """A download must outlive a stall, or it would fail at the moment in which it is to continue.

    The problem is noted where the longer time was written, else with the budget, once for all upstreams.
    """
    budget = ("fills", "budget")
    limit = settings.fills.budget
    for timeout, trouble in (
        ("idle_timeout", "a connection that stalls"),
        ("header_timeout", "an endpoint that does not answer"),
    ):
        key = ("upstreams", name, timeout)
        seconds: float = getattr(upstream, timeout)
        if seconds < limit or tree.is_wrong(key) or tree.is_wrong(budget):
            continue
        would = f"{trouble} would end a download before it is tried again"
        if tree.get(key) is not None:
            tree.problem(
                key,
                f"{format_duration(seconds)} is not shorter than fills.budget ({format_duration(limit)}): {would}; "
                "lower it, or raise fills.budget",
            )
        else:
            tree.problem(
                budget,
                f"{format_duration(limit)} is not longer than {timeout} ({format_duration(seconds)}): {would}; write "
                f"more, or lower {timeout}",
                usable=True,
            )


def _warn_of_long_timeouts(tree: Tree, name: str, upstream: UpstreamSettings) -> None:
    for timeout, why in (
        ("connect_timeout", ", in which connecting counts"),
        ("revalidate_timeout", ": while upstream hangs, clients wait that long for what is here"),
    ):
        key = ("upstreams", name, timeout)
        seconds: float = getattr(upstream, timeout)
        if seconds > upstream.header_timeout and tree.get(key) is not None:
            limit = format_duration(upstream.header_timeout)
            tree.warning(key, f"{format_duration(seconds)} is longer than header_timeout ({limit}){why}; lower it")


def _check_connections(tree: Tree, name: str, upstream: UpstreamSettings) -> None:
    """Downloads may have more connections together than there are, and take turns; one alone may not."""
    most = upstream.max_connections
    for limit in ("connections", "max_fills"):
        key = ("upstreams", name, limit)
        number: int = getattr(upstream, limit)
        if number <= most or tree.get(key) is None:
            continue
        advice = f"write {most} or less, or raise max_connections"
        if limit == "connections":
            tree.problem(key, f"{number} for one download are more than max_connections ({most}); {advice}")
        else:
            tree.warning(
                key, f"{number} downloads at a time are more than max_connections ({most}), so that some wait; {advice}"
            )


def _with_fewer_connections(tree: Tree, settings: Settings) -> Settings:
    """Nobody has to write `connections` and `max_fills` for a `max_connections` below their defaults."""
    upstreams = {}
    for name, upstream in settings.upstreams.items():
        fitting = {
            limit: min(getattr(upstream, limit), upstream.max_connections)
            for limit in ("connections", "max_fills")
            if tree.get(("upstreams", name, limit)) is None
        }
        upstreams[name] = upstream.model_copy(update=fitting)
    return settings.model_copy(update={"upstreams": upstreams})


def _with_default(tree: Tree, settings: Settings) -> Settings:
    """One upstream answers clients that name none: the one marked, the only one, or Docker Hub."""
    upstreams = settings.upstreams
    if any(key[0] == "upstreams" and (len(key) < 3 or key[2] == "default") for key in tree.wrong):
        return settings
    if not upstreams:
        tree.problem(
            ("upstreams",), "names no registry; name one at least, or leave the key out for the well-known ones"
        )
        return settings
    marked = [name for name, upstream in upstreams.items() if upstream.default]
    for name in marked[1:]:
        tree.problem(("upstreams", name, "default"), f"{marked[0]} is the default already; only one can be")
    if marked:
        return settings
    if len(upstreams) == 1:
        chosen = next(iter(upstreams))
    elif DOCKER_HUB in upstreams and "default" not in upstreams[DOCKER_HUB].model_fields_set:
        chosen = DOCKER_HUB
    else:
        names = ", ".join(upstreams)
        tree.problem(
            ("upstreams",), f"none of {names} is the default; add `default: true` to the one that clients mean"
        )
        return settings
    default = upstreams[chosen].model_copy(update={"default": True})
    return settings.model_copy(update={"upstreams": upstreams | {chosen: default}})
