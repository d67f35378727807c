"""A pull-through cache for container images, made for slow, lossy, metered and restricted networks."""

__version__ = "0.1.0"
