"""mirrorproxy beside docker-registry and nginx, on one machine, in one run: `python -m bench`, or `make bench`.

`origin` is the registry upstream of the caches, `peers` starts and stops what is measured, `load` makes the requests,
`memory` reads what the processes took, `rows` says what is measured and `__main__` prints it. docs/benchmarks.md tells
how to read the result.
"""


class Failure(Exception):
    """The run cannot go on, or a figure would not be true: a missing peer, a failed request, a wrong byte."""
