"""The configuration: YAML, environment and flags to typed settings, with all problems told at once.

`load()` is the way in; `Settings` and the models below it are what the rest of the program is handed.
"""

from mirrorproxy.config.addresses import ListenAddress
from mirrorproxy.config.changes import Changes, changes
from mirrorproxy.config.files import check_files
from mirrorproxy.config.load import Loaded, load
from mirrorproxy.config.problems import ConfigError, Problem
from mirrorproxy.config.settings import (
    CacheSettings,
    CredentialsSettings,
    DockerConfigSettings,
    FillSettings,
    LogSettings,
    PartialSettings,
    PinnedImage,
    RetentionRule,
    ServerSettings,
    Settings,
    TlsSettings,
    UpstreamSettings,
)
from mirrorproxy.config.show import dump, to_yaml
from mirrorproxy.config.sources import Overrides
from mirrorproxy.config.values import Linger

__all__ = [
    "CacheSettings",
    "Changes",
    "ConfigError",
    "CredentialsSettings",
    "DockerConfigSettings",
    "FillSettings",
    "Linger",
    "ListenAddress",
    "Loaded",
    "LogSettings",
    "Overrides",
    "PartialSettings",
    "PinnedImage",
    "Problem",
    "RetentionRule",
    "ServerSettings",
    "Settings",
    "TlsSettings",
    "UpstreamSettings",
    "changes",
    "check_files",
    "dump",
    "load",
    "to_yaml",
]
