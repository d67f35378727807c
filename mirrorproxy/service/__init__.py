"""The composition root: from settings to a running service, and its way through start, reload and stop."""

from mirrorproxy.listening.inherited import address_of, take_over
from mirrorproxy.service.run import serve

__all__ = ["address_of", "serve", "take_over"]
