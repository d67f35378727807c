"""Tokens: read, kept until a little before they expire, bounded, asked for once."""

import asyncio
import json

import pytest

from mirrorproxy.errors import BadAnswer, ServerFailed
from mirrorproxy.upstream.tokens import Token, Tokens, parse_token


class Service:
    """A token service that counts, and answers when it may."""

    def __init__(self, lifetime: float = 300.0) -> None:
        self.asked = 0
        self.lifetime = lifetime
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self) -> Token:
        self.asked += 1
        await self.may_answer.wait()
        return Token(f"token-{self.asked}", self.lifetime)


@pytest.mark.parametrize(
    ("answer", "value", "lifetime"),
    [
        ({"token": "a.b-c_d=="}, "a.b-c_d==", 60.0),
        ({"access_token": "x"}, "x", 60.0),
        ({"token": "x", "access_token": "y"}, "x", 60.0),
        ({"token": "", "access_token": "y"}, "y", 60.0),
        ({"token": "x", "expires_in": 300}, "x", 300.0),
        ({"token": "x", "expires_in": 12.5}, "x", 12.5),
        ({"token": "x", "expires_in": 0}, "x", 60.0),
        ({"token": "x", "expires_in": -5}, "x", 60.0),
        ({"token": "x", "expires_in": "300"}, "x", 60.0),
        ({"token": "x", "expires_in": True}, "x", 60.0),
        ({"token": "x", "expires_in": None}, "x", 60.0),
        ({"token": "x", "expires_in": 1e300}, "x", 86_400.0),
    ],
)
def test_an_answer(answer: dict[str, object], value: str, lifetime: float) -> None:
    """`token` or `access_token`; a minute where nothing sensible is said of its life."""
    assert parse_token(json.dumps(answer).encode()) == Token(value, lifetime)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'"x"',
        b"{}",
        b'{"token": 5}',
        b'{"token": ""}',
        b'{"token": "a b"}',
        b'{"token": "a\\r\\nX-Evil: 1"}',
        b'{"token": "\\u00e9"}',
        b"[" * 100_000,
    ],
)
def test_an_answer_without_a_token(body: bytes) -> None:
    """Nothing that could not stand in a header."""
    with pytest.raises(BadAnswer):
        parse_token(body)


def test_a_token_is_not_shown() -> None:
    """Not by its repr."""
    assert "secret" not in repr(Token("secret", 60.0))


@pytest.mark.parametrize(
    ("lifetime", "keep"), [(60, 50), (300, 270), (3600, 3240), (100, 90), (20, 10), (15, 7.5), (2, 1), (0.2, 0.1)]
)
def test_how_long_it_is_kept(lifetime: float, keep: float) -> None:
    """Less ten seconds, or a tenth; short ones for half of their life."""
    assert Token("x", lifetime).keep == keep


async def test_one_is_kept_until_shortly_before_it_expires() -> None:
    """Then the next one is asked for."""
    tokens, service = Tokens(), Service(lifetime=0.2)
    assert await tokens.get("a", service) == "token-1"
    assert await tokens.get("a", service) == "token-1"
    await asyncio.sleep(0.12)
    assert await tokens.cached("a") is None
    assert await tokens.get("a", service) == "token-2"
    await tokens.aclose()


async def test_each_key_has_its_own() -> None:
    """Repositories and accounts do not share tokens."""
    tokens, service = Tokens(), Service()
    assert await tokens.get("a", service) != await tokens.get("b", service)
    await tokens.aclose()


async def test_fifty_who_wait_are_one_request() -> None:
    """For a first token, and for another one after a refusal."""
    tokens, service = Tokens(), Service()
    service.may_answer.clear()
    waiting = asyncio.gather(*(tokens.get("a", service) for _ in range(50)))
    await asyncio.sleep(0.01)
    service.may_answer.set()
    assert set(await waiting) == {"token-1"}
    renewed = await asyncio.gather(*(tokens.get("a", service, refused="token-1") for _ in range(50)))
    assert set(renewed) == {"token-2"}
    assert service.asked == 2
    await tokens.aclose()


async def test_a_refused_token_that_was_replaced_already() -> None:
    """Who comes late with the old one's refusal gets the new one."""
    tokens, service = Tokens(), Service()
    await tokens.get("a", service)
    await tokens.get("a", service, refused="token-1")
    assert await tokens.get("a", service, refused="token-1") == "token-2"
    assert service.asked == 2
    await tokens.aclose()


async def test_one_who_leaves_takes_nothing_from_the_others() -> None:
    """The request goes on without who began it."""
    tokens, service = Tokens(), Service()
    service.may_answer.clear()
    first = asyncio.ensure_future(tokens.get("a", service))  # noqa: TID251 - its end is awaited here
    await asyncio.sleep(0.01)
    second = asyncio.ensure_future(tokens.get("a", service))  # noqa: TID251 - as above
    await asyncio.sleep(0)
    first.cancel()
    service.may_answer.set()
    assert await second == "token-1"
    assert service.asked == 1
    await tokens.aclose()


async def test_a_failure_is_not_kept() -> None:
    """The next one asks again."""
    tokens, service = Tokens(), Service()

    async def fail() -> Token:
        raise ServerFailed("down")

    with pytest.raises(ServerFailed):
        await tokens.get("a", fail)
    assert await tokens.get("a", service) == "token-1"
    await tokens.aclose()


async def test_they_are_bounded() -> None:
    """The one that was not used for longest goes."""
    tokens, service = Tokens(limit=3), Service()
    for key in "abc":
        await tokens.get(key, service)
    assert await tokens.cached("a") == "token-1"
    await tokens.get("d", service)
    assert len(tokens) == 3
    assert [await tokens.cached(key) for key in "abcd"] == ["token-1", None, "token-3", "token-4"]
    await tokens.aclose()
    assert len(tokens) == 0
    assert await tokens.cached("a") is None
