"""The settings in effect, as a file would have them, with secrets masked."""

from typing import Any

import yaml

from mirrorproxy.config.settings import CredentialsSettings, Settings


def dump(settings: Settings) -> dict[str, Any]:
    """The settings as plain dictionaries, lists, texts and numbers that load again, but for masked passwords.

    Settings that are not there (`tls`, `proxy`...) are left out. A password read from a file or a variable is not
    part of it, where it is kept is.
    """
    dumped = settings.model_dump(mode="json", exclude_none=True)
    for name, upstream in settings.upstreams.items():
        credentials = upstream.credentials
        if isinstance(credentials, CredentialsSettings) and (credentials.password_file or credentials.password_env):
            del dumped["upstreams"][name]["credentials"]["password"]
    return dumped


def to_yaml(settings: Settings) -> str:
    """The dump as YAML."""
    text: str = yaml.safe_dump(dump(settings), sort_keys=False, allow_unicode=True, width=120)
    return text
