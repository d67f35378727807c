"""Fills: one growing download for a digest, any number of readers.

A `Flight` belongs to the service, not to the request that began it: clients come and go, it goes on. Its bytes go to
an ingest of the store; its readers read that file, each at its own pace and offset. One that leaves changes nothing for
the others, nor for the flight.

The last `HELD` bytes are given to nobody before the digest is known to be right: wrong bytes are a broken transfer,
never a complete wrong one. Where the disk fails, readers get the rest from the source directly (`Passage`).
"""

from mirrorproxy.fill.fills import Fills
from mirrorproxy.fill.flight import Room, Space
from mirrorproxy.fill.passage import HELD

__all__ = ["HELD", "Fills", "Room", "Space"]
