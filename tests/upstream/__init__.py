"""The client of registries upstream, against scripted ones on loopback."""
