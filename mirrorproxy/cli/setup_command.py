"""`mirrorproxy setup containerd`: have containerd ask mirrorproxy first, or no longer."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mirrorproxy.errors import MirrorproxyError, NameInvalid
from mirrorproxy.setup import (
    DEFAULT,
    Mirror,
    apply,
    config_path_warnings,
    folder_of,
    mirror_url,
    plan_removal,
    plan_setup,
    warnings,
)


def add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command to the program's."""
    parser = subparsers.add_parser("setup", help="have a client on this machine ask mirrorproxy")
    clients = parser.add_subparsers(dest="client", metavar="containerd", required=True)
    containerd = clients.add_parser(
        "containerd",
        help="write the hosts.toml files of containerd, Kubernetes nodes and Docker 28 and newer",
        description="Write hosts.toml files, which containerd reads anew at each pull. What others wrote there stays "
        "as it is. The same words twice change nothing; other words replace what the earlier ones did.",
    )
    containerd.add_argument(
        "--mirror", default="http://127.0.0.1:5000", metavar="URL", help="where mirrorproxy is (default: %(default)s)"
    )
    containerd.add_argument(
        "--directory",
        type=Path,
        default=Path("/etc/containerd/certs.d"),
        metavar="DIR",
        help="containerd's config_path (default: %(default)s)",
    )
    containerd.add_argument(
        "--registry",
        action="append",
        default=[],
        metavar="NAME",
        help="a registry to pull from through mirrorproxy; may be given more than once (default: all)",
    )
    containerd.add_argument(
        "--ca", type=PurePosixPath, metavar="FILE", help="certificate to trust, of a mirror at an https:// URL"
    )
    containerd.add_argument(
        "--no-fallback", action="store_true", help="never ask the registries themselves when mirrorproxy fails"
    )
    containerd.add_argument(
        "--replace", action="store_true", help="keep files of others as backups, and write mirrorproxy's in their place"
    )
    containerd.add_argument("--remove", action="store_true", help="take all of it back, and restore what was there")
    containerd.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    containerd.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do it: 0 when all is as asked for, 1 when it cannot be done, 2 for wrong words."""
    registries = args.registry or [DEFAULT]
    try:
        mirror = Mirror(mirror_url(args.mirror), args.ca, fallback=not args.no_fallback)
        for registry in registries:
            _check_name(registry)
    except ValueError as error:
        print(f"mirrorproxy setup containerd: {error}", file=sys.stderr)
        return 2
    try:
        if args.remove:
            changes = plan_removal(args.directory)
        else:
            changes = plan_setup(args.directory, registries, mirror, replace=args.replace)
        for change in changes:
            if not args.dry_run:
                apply(change)
            print(f"would {change}" if args.dry_run else change)
        told = list(warnings(args.directory, () if args.remove else registries))
        if not args.remove:
            told += config_path_warnings(args.directory, args.directory.parent / "config.toml")
            told += _certificate_warnings(args.ca)
        for warning in told:
            print(f"warning: {warning}", file=sys.stderr)
    except MirrorproxyError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        root = "; run it as root" if isinstance(error, PermissionError) and os.geteuid() != 0 else ""
        where = error.filename or args.directory
        print(f"mirrorproxy setup containerd: {where}: {error.strerror or error}{root}", file=sys.stderr)
        return 1
    if not changes:
        print("nothing to change")
    return 0


def _check_name(registry: str) -> None:
    """Raises ValueError: it is no name of a registry."""
    try:
        folder_of(registry)
    except NameInvalid:
        raise ValueError(f"--registry {registry!r:.300}: write a host or host:port, such as docker.io") from None


def _certificate_warnings(ca: PurePosixPath | None) -> Iterator[str]:
    if ca is not None and not Path(ca).is_file():
        yield f"there is no file {ca} here: containerd needs it at that path, else no pull comes to the mirror"
