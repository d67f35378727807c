"""The settings as they were written: nested text from file, environment and flags, with the place of each key."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from mirrorproxy.config.problems import Key, Place, Problem, dotted

Value = str | None | list["Value"] | dict[str, "Value"]
"""Scalars stay text until the type of their setting reads them: `password: 0123` and `username: no` lose nothing."""

UNPRINTABLE = re.compile("[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
"""No setting has use for control characters and line breaks; in a password they are a slip that is hard to see."""

NOT_PRINTABLE = "has a line break, or another character that cannot be printed, in it"

_LONGEST_KEY = 300

_NOWHERE = Place("")


def is_plain_key(text: str) -> bool:
    """Whether `text` can stand in a message as a key; no key of ours is longer, no name of a registry either."""
    return len(text) <= _LONGEST_KEY and not UNPRINTABLE.search(text)


@dataclass(slots=True)
class Tree:
    """What was written, where, and what was found wrong with it so far."""

    root: dict[str, Value] = field(default_factory=dict)
    places: dict[Key, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    wrong: set[Key] = field(default_factory=set)

    def problem(self, key: Key, message: str, place: Place | None = None, *, usable: bool = False) -> None:
        """Note a problem at `key`; its place is that of the key or of the nearest one above it.

        `usable` says that the value there is worth a look all the same.
        """
        self.problems.append(self._located(key, message, place))
        if key and not usable:
            self.wrong.add(key)

    def warning(self, key: Key, message: str, place: Place | None = None) -> None:
        """Note something that does not stop the start."""
        self.warnings.append(self._located(key, message, place))

    def is_wrong(self, key: Key) -> bool:
        """Whether a problem was noted at `key`, above it or below it: what follows from it is not worth telling."""
        return any(key[: len(wrong)] == wrong[: len(key)] for wrong in self.wrong)

    def place(self, key: Key) -> Place:
        """Where `key` was written, or the nearest key above it."""
        while key:
            if key in self.places:
                return self.places[key]
            key = key[:-1]
        return _NOWHERE

    def get(self, key: Key) -> Value:
        """The value at `key`, None where there is none."""
        value: Value = self.root
        for part in key:
            if isinstance(value, dict) and isinstance(part, str):
                value = value.get(part)
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                return None
        return value

    def put(self, key: tuple[str, ...], value: Value, place: Place) -> None:
        """Set `key`, whatever it was before; leaves things alone where something above it is no mapping."""
        node: Value = self.root
        for depth, part in enumerate(key[:-1], start=1):
            if not isinstance(node, dict):
                return
            if node.get(part) is None:
                node[part] = {}
                self.places[key[:depth]] = place
            node = node[part]
        if isinstance(node, dict):
            node[key[-1]] = value
            for old in [old for old in self.places if old[: len(key)] == key]:
                del self.places[old]
            self.places[key] = place

    def replace(self, key: Key, value: Value) -> None:
        """Give what is written at `key` another value; its place stays."""
        parent = self.get(key[:-1])
        if isinstance(parent, dict):
            parent[str(key[-1])] = value
        elif isinstance(parent, list):
            parent[int(key[-1])] = value

    def drop(self, key: Key) -> bool:
        """Take out what is written at `key`; of a list all of it, as the places of its other items would move.

        False when there is nothing.
        """
        parent = self.get(key[:-1])
        if isinstance(parent, list):
            return self.drop(key[:-1])
        if not key or not isinstance(parent, dict) or key[-1] not in parent:
            return False
        del parent[str(key[-1])]
        return True

    def rename(self, old: tuple[str, ...], new: str) -> None:
        """Give the last part of `old` another name, in its order; the places go with it."""
        parent = self.get(old[:-1])
        assert isinstance(parent, dict)
        entries = {new if name == old[-1] else name: value for name, value in parent.items()}
        parent.clear()
        parent.update(entries)
        for key in [key for key in self.places if key[: len(old)] == old]:
            self.places[(*old[:-1], new, *key[len(old) :])] = self.places.pop(key)

    def match(self, pattern: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The keys written that fit `pattern`, whose parts are names or `*` for any."""
        keys: list[tuple[str, ...]] = [()]
        for part in pattern:
            deeper = []
            for key in keys:
                node = self.get(key)
                names = list(node) if isinstance(node, dict) else []
                deeper += [(*key, name) for name in names if part in ("*", name)]
            keys = deeper
        yield from keys

    def _located(self, key: Key, message: str, place: Place | None) -> Problem:
        where = place or self.place(key)
        return Problem(dotted(key), where.line, message, where.source)
