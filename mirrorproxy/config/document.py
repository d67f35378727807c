"""A YAML file as a tree of text with lines.

Every scalar stays the text it was written as, and gets its meaning from the type of the setting. So nothing is lost to
YAML's own ideas (`no` is a fine user name, `0123` a password, `1:30` no number), and file, environment and flags are
read alike.
"""

import re
from pathlib import Path

import yaml

from mirrorproxy.config.problems import ConfigError, Key, Place, Problem
from mirrorproxy.config.tree import NOT_PRINTABLE, UNPRINTABLE, Tree, Value, is_plain_key

_LARGEST_FILE = 2**20
_MOST_VALUES = 20_000  # aliases of aliases can make terabytes of a small file, and go round in circles
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq")}
_NULLS = {"", "~", "null", "Null", "NULL"}
_TAKEN_FROM_FILE = re.compile(r"""(alias|anchor|handle) (?:'.*?'|".*?")""")
_HINTS = (
    (r"'\t'", "YAML is indented with spaces, not with tabs"),
    ("mapping values are not allowed", "is the indentation right, or does a text with ': ' need quotes?"),
    ("cannot start any token", "put quotes round a text that begins with this character"),
    ("undefined alias", "put quotes round a text that begins with *"),
    ("could not find expected ':'", "a key needs a colon and a space after it"),
    ("expected ',' or", "are all brackets and quotes closed?"),
    ("expected <block end>", "is the indentation right, are all brackets and quotes closed?"),
    ("expected a single document", "a configuration is one document: take out the line ---"),
)


def read_document(path: Path, tree: Tree) -> None:
    """Fill `tree` from the YAML file at `path`. Keys given twice and the like are noted in the tree as problems.

    Raises ConfigError when the file cannot be read or is no YAML at all, since then nothing else can be said of it.
    """
    source = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise _refused(source, f"cannot be read: {reason or error}") from None
    if len(content) > _LARGEST_FILE:
        raise _refused(source, f"is larger than {_LARGEST_FILE} bytes: is this the right file?")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise _refused(source, "is not UTF-8 text", content.count(b"\n", 0, error.start) + 1) from None
    node = _compose(source, text)
    if node is not None:
        try:
            root = _Reader(source, tree).value(node, ())
        except RecursionError:
            raise _refused(source, "is nested too deeply, or its aliases (*name) go round") from None
        if isinstance(root, dict):
            tree.root = root
        elif root is not None:
            raise _refused(source, "must be a mapping of settings, such as `cache: {max_size: 50GiB}`", 1)


def _refused(source: str, message: str, line: int | None = None) -> ConfigError:
    return ConfigError([Problem("", line, message, source)])


def _compose(source: str, text: str) -> yaml.Node | None:
    try:
        loader = yaml.BaseLoader(text)  # the reader of Python's own: libyaml's has no words for many mistakes
        node: yaml.Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise _refused(source, *_explained(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _refused(source, f"has the character U+{error.character:04X}, which YAML does not allow", line) from None
    except RecursionError:
        raise _refused(source, "is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError):
        # PyYAML lets these out for an escape such as "\UFFFFFFFF" and for a %YAML line with a number of many digits.
        raise _refused(
            source, "is not YAML: an escape in a quoted text, or a line that begins with %, is wrong"
        ) from None
    return node


def _explained(error: yaml.MarkedYAMLError) -> tuple[str, int | None]:
    """PyYAML's words with a hint, and the line. Words taken from the file are left out: they may be a password's."""
    mark = error.problem_mark or error.context_mark
    said = ", ".join(part for part in (error.context, error.problem) if part)
    hint = next((hint for sign, hint in _HINTS if sign in said), "")
    said = _TAKEN_FROM_FILE.sub(r"\1", said)
    column = f", column {mark.column + 1}" if mark else ""
    message = f"is not YAML{column}: {said}" + (f"; {hint}" if hint else "")
    return message, mark.line + 1 if mark else None


class _Reader:
    """Turns nodes into values, and notes the place of each key."""

    def __init__(self, source: str, tree: Tree) -> None:
        self._source = source
        self._tree = tree
        self._left = _MOST_VALUES

    def value(self, node: yaml.Node, key: Key) -> Value:
        """The value of `node`, None for an empty one and for one that was found wrong."""
        place = self._place(node)
        self._tree.places.setdefault(key, place)
        self._left -= 1
        if self._left < 0:
            raise _refused(
                self._source, f"has more than {_MOST_VALUES} values: do its aliases (*name) go round?", place.line
            )
        if node.tag not in _PLAIN_TAGS:
            self._tree.problem(
                key, "a YAML tag (!name) has no meaning here; put quotes round text that begins with !", place
            )
        elif isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        elif isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*key, position)) for position, item in enumerate(node.value)]
        elif isinstance(node, yaml.ScalarNode):
            return self._scalar(node, key)
        return None

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> str | None:
        text: str = node.value
        if node.style is None and text in _NULLS:
            return None
        if UNPRINTABLE.search(text):
            self._tree.problem(key, NOT_PRINTABLE, self._tree.place(key))
            return None
        return text

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Value]:
        merged = self._merged([value for name, value in node.value if _is_merge(name)], key)
        entries: dict[str, Value] = {}
        for name_node, value_node in node.value:
            place = self._place(name_node)
            if _is_merge(name_node):
                continue
            if not _is_name(name_node):
                self._tree.problem((), "a key must be a plain word", place)
                continue
            name = name_node.value
            if name in entries:
                first = self._tree.place((*key, name)).line
                self._tree.problem((*key, name), f"is given twice, first on line {first}; keep one", place, usable=True)
                continue
            self._tree.places[(*key, name)] = place
            entries[name] = self.value(value_node, (*key, name))
        return merged | entries

    def _merged(self, merges: list[yaml.Node], key: Key) -> dict[str, Value]:
        """What `<<: *other` or `<<: [*one, *other]` bring in; the first to name a key wins."""
        entries: dict[str, Value] = {}
        for merge in merges:
            for source in reversed(merge.value if isinstance(merge, yaml.SequenceNode) else [merge]):
                if isinstance(source, yaml.MappingNode):
                    entries |= self._mapping(source, key)
                else:
                    self._tree.problem((), "<< takes a mapping, as in `<<: *other`", self._place(source))
        return entries

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._source, node.start_mark.line + 1)


def _is_merge(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.value == "<<" and node.style is None


def _is_name(node: yaml.Node) -> bool:
    is_text = isinstance(node, yaml.ScalarNode) and node.tag in _PLAIN_TAGS
    return is_text and is_plain_key(node.value)
