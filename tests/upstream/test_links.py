"""The next page, by the `Link` header."""

import pytest

from mirrorproxy.upstream.links import next_query


@pytest.mark.parametrize(
    ("header", "query"),
    [
        ('</v2/a/tags/list?last=b&n=2>; rel="next"', "last=b&n=2"),
        ("</v2/a/tags/list?last=b&n=2>; rel=next", "last=b&n=2"),
        ("<https://r.example/v2/a/tags/list?n=2&last=x%2Fy>;rel=next", "n=2&last=x%2Fy"),
        ('<?last=b>; title="a; b"; rel="next"', "last=b"),
        ('<?last=b>; rel="prev next"', "last=b"),
        ("<?last=b>; REL=NEXT", "last=b"),
        ('<?last=a>; rel="prev", <?last=b>; rel="next"', "last=b"),
        ("<?ns=docker.io&last=b>; rel=next", "last=b"),
        ("<?last=b%2B%2f~>; rel=next", "last=b%2B%2f~"),
        ('<?last=b>; rel="previous"', None),
        ("<?last=b>; rel=nextish", None),
        ('<?last=b>; title="rel=next"', None),
        ("<?last=b>", None),
        ("</v2/a/tags/list>; rel=next", None),
        ("<http://[broken?x>; rel=next", None),
        ("last=b; rel=next", None),
        ("", None),
    ],
)
def test_next_query(header: str, query: str | None) -> None:
    """Relative, absolute, quoted or not: the query, as it stands, without `ns`."""
    assert next_query([header]) == query


def test_several_headers() -> None:
    """One link a header is as good."""
    assert next_query(["<?last=a>; rel=prev", "<?last=b>; rel=next"]) == "last=b"
    assert next_query([]) is None
