"""Whether what is kept is still what it should be.

checker      hashes one piece of content, at the pace and the priority of somebody who has time
scrub        all content, every few days, in the background of the service
verify       everything in the cache directory, now, because somebody asked
refetch      gets content again that was wrong
quarantine   where what is wrong goes, for somebody to look at, for a while
"""

from mirrorproxy.audit.checker import Checker, State, Verdict
from mirrorproxy.audit.quarantine import Quarantine
from mirrorproxy.audit.refetch import Fate, Refetch
from mirrorproxy.audit.scrub import Scrub

__all__ = ["Checker", "Fate", "Quarantine", "Refetch", "Scrub", "State", "Verdict"]
