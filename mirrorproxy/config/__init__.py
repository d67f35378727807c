"""The configuration: YAML, environment and flags to typed settings, with all problems told at once.

`load()` is the way in; `Settings` and the models below it are what the rest of the program is handed.
"""

from mirrorproxy.config.addresses import ListenAddress
from mirrorproxy.config.changes import Changes, changes
from mirrorproxy.config.load import Loaded, load
from mirrorproxy.config.problems import ConfigError, Problem
from mirrorproxy.config.settings import (
    CacheSettings,
    CredentialsSettings,
    DockerConfigSettings,
    FillSettings,
    LogSettings,
    ServerSettings,
    Settings,
    TlsSettings,
    UpstreamSettings,
)
from mirrorproxy.config.show import dump, to_yaml
from mirrorproxy.config.sources import Overrides

__all__ = [
    "CacheSettings",
    "Changes",
    "ConfigError",
    "CredentialsSettings",
    "DockerConfigSettings",
    "FillSettings",
    "ListenAddress",
    "Loaded",
    "LogSettings",
    "Overrides",
    "Problem",
    "ServerSettings",
    "Settings",
    "TlsSettings",
    "UpstreamSettings",
    "changes",
    "dump",
    "load",
    "to_yaml",
]
