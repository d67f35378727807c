"""What stays and what goes. `Retention` keeps the cache within its limits and to its rules; docs/storage.md says how.

`uses` notes what was served, `images` knows what an image needs, `pins` what must stay, `rules` what is too old to
stay, `account` sees that the index and the disk say the same.
"""

from mirrorproxy.retention.pins import Missing, Pins
from mirrorproxy.retention.retention import Bounds, Gone, Retention
from mirrorproxy.retention.rules import Rule

__all__ = ["Bounds", "Gone", "Missing", "Pins", "Retention", "Rule"]
