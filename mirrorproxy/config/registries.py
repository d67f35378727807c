"""The upstreams' names: which are there without a file, which are the same, and where they are asked by default."""

from mirrorproxy.config.addresses import parse_registry
from mirrorproxy.config.problems import Place
from mirrorproxy.config.tree import Tree, Value

DOCKER_HUB = "docker.io"
HUB_ALIASES = ("index.docker.io", "registry-1.docker.io")

WELL_KNOWN = (DOCKER_HUB, "ghcr.io", "quay.io", "registry.k8s.io", "gcr.io", "mcr.microsoft.com", "public.ecr.aws")
"""The upstreams of a configuration that names none."""


def normal_name(text: str) -> str:
    """A registry's name in lower case, Docker Hub's under its one name. Raises ValueError."""
    name = parse_registry(text)
    return DOCKER_HUB if name in HUB_ALIASES else name


def default_endpoint(name: str) -> str:
    """Where a registry is asked when nothing else is said."""
    return f"https://{HUB_ALIASES[1] if name == DOCKER_HUB else name}"


def normalise_upstreams(tree: Tree) -> None:
    """Put the well-known upstreams into a tree that has none, and every name into its normal form."""
    if tree.get(("upstreams",)) is None:
        tree.put(("upstreams",), {name: {} for name in WELL_KNOWN}, Place(""))
    upstreams = tree.get(("upstreams",))
    if not isinstance(upstreams, dict):
        return
    written_as: dict[str, str] = {}
    for written in list(upstreams):
        key = ("upstreams", written)
        try:
            name = normal_name(written)
        except ValueError as error:
            tree.problem(key, str(error))
            tree.drop(key)
            continue
        if name in written_as:
            tree.problem(key, f"is the same registry as {written_as[name]}; keep one")
            tree.drop(key)
        else:
            written_as[name] = written
    for name, written in written_as.items():
        tree.rename(("upstreams", written), name)


def add_default_endpoints(tree: Tree) -> None:
    """Give every upstream without endpoints the one that follows from its name."""
    for key in tree.match(("upstreams", "*")):
        endpoints: list[Value] = [default_endpoint(key[-1])]
        value = tree.get(key)
        if value is None or (isinstance(value, dict) and value.get("endpoints") is None):
            tree.put((*key, "endpoints"), endpoints, tree.place(key))
