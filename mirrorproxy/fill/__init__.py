"""Fills: one growing download for a digest, any number of readers.

A download belongs to the service, not to the request that began it: clients come and go, it goes on. Its bytes go to an
ingest of the store; its readers read that file, each at its own pace and offset. One that leaves changes nothing for
the others.

    fills      which downloads there are, and whose turn it is (slots)
    flight     one of them as its readers (reader) see it
    download   the work behind it: from the first missing byte to the committed blob, over every broken connection
    patience   how long it is tried again
    lanes      its connections: which bytes each asks for (plan), and how many there are (pace)
    passage    a blob that goes through without being kept, where the disk can take no more

The last `HELD` bytes are given to nobody before the digest is known to be right: wrong bytes are a broken transfer,
never a complete wrong one.
"""

from mirrorproxy.fill.download import Room, Space
from mirrorproxy.fill.fills import Fills, Terms
from mirrorproxy.fill.lanes import Limits
from mirrorproxy.fill.passage import HELD

__all__ = ["HELD", "Fills", "Limits", "Room", "Space", "Terms"]
