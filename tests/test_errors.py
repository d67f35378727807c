"""The tree of errors is the one that its page shows, speaks the codes that clients know, and can be copied."""

import copy
import inspect
import pickle
import re
from itertools import combinations

import pytest

from mirrorproxy import errors
from mirrorproxy.errors import Invalid, MirrorproxyError, NotFound, Overloaded, RateLimited, UpstreamError

CLASSES = [
    found for _, found in inspect.getmembers(errors, inspect.isclass) if found.__module__ == "mirrorproxy.errors"
]
# Distribution specification, "Error Codes", and the three of distribution's own that are used here.
KNOWN_CODES = {
    "BLOB_UNKNOWN",
    "DENIED",
    "DIGEST_INVALID",
    "MANIFEST_UNKNOWN",
    "NAME_INVALID",
    "NAME_UNKNOWN",
    "TOOMANYREQUESTS",
    "UNSUPPORTED",
    "UNAVAILABLE",
    "UNKNOWN",
    "PAGINATION_NUMBER_INVALID",
}


def drawn_tree() -> dict[str, str]:
    """Child to parent, as the module's page draws them."""
    tree: dict[str, str] = {}
    above = ["MirrorproxyError"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│ ]*)[├└]── (\w+(?:, \w+)*)(?=\s|$)", line):
            depth = len(match[1]) // 4 + 1
            names = match[2].split(", ")
            tree |= dict.fromkeys(names, above[depth - 1])
            above[depth:] = [names[-1]]
    return tree


def test_the_tree_is_as_drawn() -> None:
    """Who reads the page knows which class stands under which: the table of statuses follows that."""
    assert drawn_tree() == {
        found.__name__: found.__mro__[1].__name__ for found in CLASSES if found is not MirrorproxyError
    }


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_codes_are_those_that_clients_know(error: type[MirrorproxyError]) -> None:
    """Nothing else is ever put into an error body."""
    assert error.code in KNOWN_CODES


def test_an_outage_is_no_absence() -> None:
    """The kinds exclude each other: what catches "not there" never catches an outage, a refusal or a bad request."""
    for one, other in combinations((Invalid, NotFound, UpstreamError, Overloaded, errors.Denied), 2):
        assert not [found for found in CLASSES if issubclass(found, one) and issubclass(found, other)]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
@pytest.mark.parametrize("duplicate", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_copy_says_the_same(error: type[MirrorproxyError], duplicate: object) -> None:
    """Errors are raised again for others, as copies: none may lose what it says."""
    original = error("it broke")
    original.detail = {"name": "a/b"}
    original.negative = True
    if isinstance(original, UpstreamError | Overloaded):
        original.retry_after = 7.5
    assert callable(duplicate)
    copied = duplicate(original)
    assert copied is not original
    assert type(copied) is error
    assert (str(copied), copied.args, vars(copied)) == ("it broke", ("it broke",), vars(original))


def test_what_upstream_asks_to_wait_is_kept() -> None:
    """None where it said nothing; our own limits always say something."""
    assert RateLimited("later", retry_after=30.0, detail={"a": 1}).retry_after == 30.0
    assert RateLimited("later").retry_after is None
    assert Overloaded("later").retry_after == 5.0
