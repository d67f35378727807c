"""mirrorproxy beside docker-registry and nginx, on one machine, in one run: `python -m bench`, or `make bench`.

`origin` is the registry upstream of the caches, reached through a `network`; `peers` starts and stops what is measured;
`load` makes the requests, `clients` those that pull as container runtimes do; `memory` reads what the processes took.
`rows` says what is measured, `hostile` what is measured on bad networks, and `__main__` prints it all.
docs/benchmarks.md tells how to read the result.
"""


class Failure(Exception):
    """The run cannot go on, or a figure would not be true: a missing peer, a failed request, a wrong byte."""
