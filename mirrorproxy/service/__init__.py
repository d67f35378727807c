"""The composition root: from settings to a running service, and its way through start, reload and stop."""

from mirrorproxy.service.run import serve

__all__ = ["serve"]
