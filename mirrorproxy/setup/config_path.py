"""Whether containerd looks into the directory at all: its `config.toml`, read and never written.

`config_path` stands in another table in each version of that file. containerd 2 has `/etc/containerd/certs.d` and
`/etc/docker/certs.d` for it when nothing of the kind is set; earlier ones have none, and then pass over every
`hosts.toml` without a word.
"""

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_PLUGINS = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.images"}
"""Whose table has it, by the `version` at the top; without one, the file is of version 1."""


def warnings(directory: Path, config: Path) -> Iterator[str]:
    """What keeps containerd with this `config.toml` from reading `directory`, or may keep it where there is none."""
    try:
        settings = tomllib.loads(config.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):  # in a pod, or where the defaults do
        yield (
            f"there is no {config} to see whether {directory} is looked into: Docker and containerd 2 do by "
            "themselves, containerd before version 2 only with config_path in its configuration"
        )
        return
    except (OSError, ValueError) as error:
        yield f"{config} cannot be read, so whether containerd looks into {directory} is not known: {error}"
        return
    registry, plugin = _registry(settings)
    for old in ("mirrors", "configs"):
        if registry.get(old):
            yield f"{config}: registry.{old} does not go together with config_path; take it out"
    paths = str(registry.get("config_path", "")).split(":")
    if str(directory) in paths:
        return
    if settings.get("imports") and paths == [""]:
        yield f'{config} imports other files; one of them has to have config_path = "{directory}"'
    elif paths != [""]:
        yield f"{config}: config_path is {':'.join(paths)}: containerd does not look into {directory}"
    else:
        yield (
            f"{config} has no config_path: containerd before version 2 looks into {directory} only with "
            f'config_path = "{directory}" under [plugins."{plugin}".registry], and after a restart'
        )


def _registry(settings: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The table about registries, and the name of the plugin that it belongs to."""
    version = settings.get("version", 1)
    name = _PLUGINS.get(version, _PLUGINS[3]) if isinstance(version, int) else _PLUGINS[3]
    found: Any = settings
    for key in ("plugins", name, "registry"):
        found = found.get(key, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}, name
