"""`WWW-Authenticate` as registries send it, and as they should not."""

import time

import pytest

from mirrorproxy.upstream.challenge import Challenge, choose, parse

HUB = (
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:library/alpine:pull",error="invalid_token"'
)


def test_docker_hub() -> None:
    """The form that all know."""
    (challenge,) = parse([HUB])
    assert challenge.scheme == "bearer"
    assert challenge.realm == "https://auth.docker.io/token"
    assert challenge.service == "registry.docker.io"
    assert challenge.scope == "repository:library/alpine:pull"
    assert challenge.parameters["error"] == "invalid_token"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ("Basic", [("basic", {})]),
        ("BASIC Realm=x", [("basic", {"realm": "x"})]),
        ('Basic realm="a, b=c", charset="UTF-8"', [("basic", {"realm": "a, b=c", "charset": "UTF-8"})]),
        (r'Basic realm="say \"hi\" \\ twice"', [("basic", {"realm": r'say "hi" \ twice'})]),
        ("Negotiate", [("negotiate", {})]),
        ("Negotiate YWJj==, Basic realm=x", [("negotiate", {}), ("basic", {"realm": "x"})]),
        ("Negotiate abc", [("negotiate", {})]),
        ('Bearer realm="u" , service = "s"', [("bearer", {"realm": "u", "service": "s"})]),
        ("Bearer realm=https://h/t,service=s", [("bearer", {"realm": "https://h/t", "service": "s"})]),
        ('Bearer realm="u" service="s"', [("bearer", {"realm": "u", "service": "s"})]),
        ('Bearer realm="u", realm="v"', [("bearer", {"realm": "u"})]),
        ('Bearer realm="unfinished', [("bearer", {"realm": "unfinished"})]),
        (", ,Basic realm=x,, ,", [("basic", {"realm": "x"})]),
        ('"what" Basic realm=x', [("what", {}), ("basic", {"realm": "x"})]),
    ],
)
def test_what_is_read(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    """By the grammar, and leniently where the meaning is plain."""
    assert parse([header]) == [Challenge(scheme, parameters) for scheme, parameters in expected]


def test_a_realm_that_says_basic_is_no_challenge() -> None:
    """What stands within quotes is a value."""
    assert parse(['Bearer realm="https://h/t",scope="Basic realm=x, Digest y"']) == [
        Challenge("bearer", {"realm": "https://h/t", "scope": "Basic realm=x, Digest y"})
    ]


@pytest.mark.parametrize(
    ("headers", "scheme"),
    [
        (["Basic realm=x", HUB], "bearer"),
        ([f"Digest realm=x, Basic realm=y, {HUB}"], "bearer"),
        (["Bearer service=s", "Basic realm=x"], "basic"),
        (["Negotiate", "Digest realm=x"], None),
        ([], None),
    ],
)
def test_the_best_that_is_offered(headers: list[str], scheme: str | None) -> None:
    """Bearer where it says where to get a token, else Basic, whatever their order."""
    chosen = choose(parse(headers))
    assert (chosen and chosen.scheme) == scheme


@pytest.mark.parametrize("piece", ['a="\\', "a=", '"', "a ", "a=b c", ",", "\\", 'x="', "=", "é"])
def test_a_long_header_takes_no_time(piece: str) -> None:
    """64 KiB of anything, the most that a header may have: 0.1 s at most, where anything quadratic takes minutes."""
    began = time.process_time()
    parse([piece * (65_536 // len(piece))])
    assert time.process_time() - began < 3
