"""`WWW-Authenticate`: whatever is written is read back, and nothing makes the reader fail."""

import string

from hypothesis import given
from hypothesis import strategies as st

from mirrorproxy.upstream.challenge import Challenge, choose, parse

_WORDS = st.text(string.ascii_letters + string.digits + "!#$%&'*+.^_`|~-", min_size=1, max_size=12)
_VALUES = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40)
_CHALLENGES = st.builds(
    Challenge,
    _WORDS.map(str.lower),
    st.dictionaries(_WORDS.map(str.lower), _VALUES, max_size=5),
)
_LISTS = st.lists(_CHALLENGES, max_size=4)


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _written(challenge: Challenge, separator: str) -> str:
    parameters = separator.join(f"{name}={_quoted(value)}" for name, value in challenge.parameters.items())
    return f"{challenge.scheme} {parameters}".strip()


@given(_LISTS, st.sampled_from([",", ", ", " ,\t"]))
def test_challenges_in_one_header_are_read_back(challenges: list[Challenge], separator: str) -> None:
    """Quoted strings may hold commas, equals signs, quotes and whole challenges."""
    assert parse([separator.join(_written(challenge, separator) for challenge in challenges)]) == challenges


@given(_LISTS)
def test_challenges_in_several_headers_are_read_back(challenges: list[Challenge]) -> None:
    """One header for each means the same as one header for all."""
    assert parse([_written(challenge, ",") for challenge in challenges]) == challenges


@given(st.lists(st.text(max_size=200), max_size=3))
def test_nothing_makes_it_fail(headers: list[str]) -> None:
    """What comes out is well formed, whatever went in."""
    for challenge in parse(headers):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(name == name.lower() for name in challenge.parameters)
    chosen = choose(parse(headers))
    assert chosen is None or chosen.scheme in ("bearer", "basic")


@given(st.text('Bearer realm="\\,= \t', max_size=300))
def test_nothing_that_looks_like_one_makes_it_fail(header: str) -> None:
    """Pieces of the grammar in any order."""
    parse([header])
