"""The small memories of the cache: bounded, fair to what was used last, and honest about every "no"."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorproxy.cache.memory import Negatives
from mirrorproxy.errors import ManifestUnknown, Unauthorized
from mirrorproxy.store.memory import Recent

STEPS = st.lists(
    st.tuples(st.sampled_from(["get", "put", "put", "drop"]), st.sampled_from("abcde"), st.integers(0, 7)), max_size=30
)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@settings(deadline=None)
@given(STEPS, st.integers(0, 12), st.sampled_from([lambda _: 1, lambda value: value, lambda value: 3]))
def test_it_behaves_as_a_list_that_is_cut(
    steps: list[tuple[str, str, int]], limit: int, weight: Callable[[int], int]
) -> None:
    """The model: a list in the order of use, cut at its old end while it weighs too much."""
    recent, model = Recent[str, int](limit, weight), list[tuple[str, int]]()
    for step, key, value in steps:
        old = dict(model).get(key)
        rest = [pair for pair in model if pair[0] != key]
        if step == "get":
            assert recent.get(key) == old
            model = model if old is None else [*rest, (key, old)]
        elif step == "drop":
            assert recent.drop(key) == old
            model = rest
        else:
            recent.put(key, value)
            model = rest if weight(value) > limit else [*rest, (key, value)]
            while sum(weight(kept) for _, kept in model) > limit:
                del model[0]
        assert recent.items() == model
        assert len(recent) == len(model)


def test_what_is_used_stays() -> None:
    """Looking at an entry is using it; overwriting one takes no second place."""
    recent = Recent[str, int](2)
    recent.put("a", 1)
    recent.put("b", 2)
    recent.put("b", 3)
    assert recent.get("a") == 1
    recent.put("c", 4)
    assert recent.items() == [("a", 1), ("c", 4)]


def test_what_is_too_large_drives_nothing_out() -> None:
    """And takes away the old value of its key: that is no longer the last one."""
    recent = Recent[str, bytes](10, len)
    recent.put("a", b"123456")
    recent.put("b", b"1234")
    recent.put("c", b"x" * 11)
    assert [key for key, _ in recent.items()] == ["a", "b"]
    recent.put("a", b"x" * 11)
    assert [key for key, _ in recent.items()] == ["b"]
    recent.put("d", b"123456")
    assert [key for key, _ in recent.items()] == ["b", "d"]


def test_falsy_values_are_values() -> None:
    """A time of 0.0 or an empty answer is not "nothing there"."""
    recent = Recent[str, float](2)
    recent.put("a", 0.0)
    recent.put("b", 1.0)
    assert recent.get("a") == 0.0
    recent.put("c", 2.0)
    assert recent.items() == [("a", 0.0), ("c", 2.0)]
    assert recent.drop("a") == 0.0
    assert recent.get("a") is None


def remembered(negatives: Negatives, key: object) -> Any:
    """The error that is raised for `key`, None where none is."""
    try:
        negatives.check(("key", key))
    except (ManifestUnknown, Unauthorized) as error:
        return error
    return None


def test_a_no_is_believed_for_its_time() -> None:
    """From the moment it was heard, up to but not including the end; asking does not make it younger."""
    clock = Clock()
    negatives = Negatives(10.0, clock)
    negatives.remember(("key", 1), ManifestUnknown("gone", detail={"tag": "x"}))
    for now in (1000.0, 1005.0, 1009.999):
        clock.now = now
        found = remembered(negatives, 1)
        assert (type(found), str(found), found.detail) == (ManifestUnknown, "gone", {"tag": "x"})
    clock.now = 1010.0
    assert remembered(negatives, 1) is None
    clock.now = 1009.0
    assert remembered(negatives, 1) is None  # it is forgotten, not hidden
    assert remembered(negatives, 2) is None


def test_it_says_that_it_is_from_memory() -> None:
    """And the first answer, which may still be on its way to somebody, is not changed by that."""
    negatives = Negatives(10.0, Clock())
    first = Unauthorized("no", retry_after=3.0)
    negatives.remember(("key", 1), first)
    found = remembered(negatives, 1)
    assert found.negative
    assert found.retry_after == 3.0
    assert not first.negative
    assert remembered(negatives, 1) is not found


def test_a_clock_that_is_set_back_makes_no_no_last_longer() -> None:
    """An hour back would make ten seconds an hour."""
    clock = Clock()
    negatives = Negatives(10.0, clock)
    negatives.remember(("key", 1), ManifestUnknown("gone"))
    clock.now -= 3600
    assert remembered(negatives, 1) is None


@pytest.mark.parametrize("ttl", [0.0, -1.0])
def test_zero_seconds_is_not_at_all(ttl: float) -> None:
    """`negative_ttl: 0s`."""
    negatives = Negatives(ttl, Clock())
    negatives.remember(("key", 1), ManifestUnknown("gone"))
    assert remembered(negatives, 1) is None


def test_the_newest_answer_counts() -> None:
    """A second "no" replaces the first."""
    clock = Clock()
    negatives = Negatives(10.0, clock)
    negatives.remember(("key", 1), ManifestUnknown("gone"))
    clock.now += 8
    negatives.remember(("key", 1), Unauthorized("not for you"))
    clock.now += 8
    assert isinstance(remembered(negatives, 1), Unauthorized)


def test_there_are_never_more_than_the_limit() -> None:
    """Who asks for a million names that do not exist drives out the oldest."""
    negatives = Negatives(10.0, Clock(), limit=3)
    for number in range(1000):
        negatives.remember(("key", number), ManifestUnknown("gone"))
    assert [number for number in range(1000) if remembered(negatives, number)] == [997, 998, 999]


def test_nothing_but_the_answer_is_kept_alive() -> None:
    """An exception holds the frames that it went through, and they hold requests and buffers."""

    class Buffer:
        pass

    def ask(fate: list[weakref.ref[Buffer]]) -> None:
        buffer = Buffer()
        fate.append(weakref.ref(buffer))
        try:
            raise OSError("reset")
        except OSError as error:
            raise ManifestUnknown("gone") from error

    negatives, fate = Negatives(10.0, Clock()), list[weakref.ref[Buffer]]()
    try:
        ask(fate)
    except ManifestUnknown as error:
        negatives.remember(("key", 1), error)
    found = remembered(negatives, 1)
    gc.collect()
    assert fate[0]() is None
    assert found.__cause__ is None
    assert str(remembered(negatives, 1)) == "gone"
