"""Pointing clients at mirrorproxy: what `mirrorproxy setup` writes on a machine, and how all of it is taken back."""

from mirrorproxy.setup.config_path import warnings as config_path_warnings
from mirrorproxy.setup.containerd import BACKUP, Change, Refused, apply, plan_removal, plan_setup, warnings
from mirrorproxy.setup.hosts import DEFAULT, Mirror, folder_of, hosts_toml, is_ours, mirror_url

__all__ = [
    "BACKUP",
    "DEFAULT",
    "Change",
    "Mirror",
    "Refused",
    "apply",
    "config_path_warnings",
    "folder_of",
    "hosts_toml",
    "is_ours",
    "mirror_url",
    "plan_removal",
    "plan_setup",
    "warnings",
]
