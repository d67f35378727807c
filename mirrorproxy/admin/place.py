"""The admin socket: where it is, and how it is reached whatever the length of its path."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "admin.sock"
"""In the cache directory, which belongs to its owner alone."""

_LONGEST = 107  # bytes: `sun_path` has 108, with the zero at the end (unix(7))


@contextmanager
def address(directory: Path) -> Iterator[str]:
    """The address to bind or connect to, for as long as the block runs: a long path goes by way of a descriptor.

    Blocks. Raises `OSError` where the directory cannot be opened.
    """
    path = str(directory / NAME)
    if len(os.fsencode(path)) <= _LONGEST:
        yield path
        return
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)
