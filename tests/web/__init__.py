"""The HTTP side, over real sockets, before a registry in memory."""
