"""Broken, stalled, throttled and far-away upstreams, in front of the real process; counted is what upstream saw."""
