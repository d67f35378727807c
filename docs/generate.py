"""`make docs`: writes the parts of docs/configuration.md that follow from the settings in the code.

They stand between marks, `<!-- types: made by make docs -->` and `<!-- end of types -->`. What is written by hand
around them stays. Type, default and reload come from the models, a setting's meaning is the text below it in
`settings.py`.
"""

import ast
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mirrorproxy.config import Settings, dump, load, settings
from mirrorproxy.config.changes import NEEDS_RESTART
from mirrorproxy.config.values import Written

PAGE = Path(__file__).parent / "configuration.md"

_HOME = "/home/me"
_REGISTRY = (
    "ghcr.io"  # whose defaults are shown: not the default one, and with the endpoint that all but Docker Hub have
)
_FOLLOWS = {  # defaults that are no constants
    "cache.directory": "what systemd made (`$CACHE_DIRECTORY`, `$STATE_DIRECTORY`), else "
    "`$XDG_CACHE_HOME/mirrorproxy`, else `~/.cache/mirrorproxy`",
    "upstreams.<registry>.endpoints": "`https://<registry>`",
}
_PLAIN = {bool: "true or false", int: "number", str: "text", Path: "path"}


class Undocumented(Exception):
    """Somebody forgot to say what a setting is; the text says where to."""


def page(text: str) -> str:
    """The page with its parts made anew. Raises `Undocumented`."""
    for name, part in (("types", _types()), ("settings", _settings())):
        begin, end = f"<!-- {name}: made by make docs -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}{part}{end}{after}"
    return text


def examples() -> Iterator[tuple[Any, str]]:
    """Every type of a setting with an example of its values, as the page has them."""
    for model in _models(Settings):
        for field in model.model_fields.values():
            for written, annotation in _written(_whole(field)):
                yield from ((annotation, example) for example in written.examples)


def _types() -> str:
    found = dict.fromkeys(
        written
        for model in _models(Settings)
        for field in model.model_fields.values()
        for written, _ in _written(_whole(field))
    )
    lines = ["| type | examples |\n|---|---|\n"]
    for written in found:
        if written.examples:
            note = f"; {written.note}" if written.note else ""
            lines.append(f"| {written.name} | {', '.join(f'`{each}`' for each in written.examples)}{note} |\n")
    lines.append(
        "| list | `[a, b]`; a single value will do for a list of one, but for `retention`, which is a list of rules |\n"
    )
    return "".join(lines)


def _settings() -> str:
    told = _texts(Path(settings.__file__).read_text())
    defaults = dump(load(None, {"HOME": _HOME}).settings)
    parts = []
    for name, field in Settings.model_fields.items():
        models = list(_models_in(field.annotation))
        intro = told.get(("Settings", name)) or (models[0].__doc__ or "")
        above = f"{name}.<registry>" if get_origin(field.annotation) is dict else name
        default = defaults[name][_REGISTRY] if above != name else defaults[name]
        rows = "".join(_row(*row) for model in models for row in _rows(model, above, default, told))
        head = "| key | type | default | meaning | reload |\n|---|---|---|---|---|\n"
        parts.append(f"## {name}\n{_one_line(intro)}\n\n{head}{rows}")
    return "\n".join(parts)


def _rows(
    model: type[BaseModel], above: str, defaults: Any, told: dict[tuple[str, str], str]
) -> Iterator[tuple[str, str, object, str]]:
    """Key, type, default and meaning of each setting of a model and the models in it."""
    for name, field in model.model_fields.items():
        key = f"{above}.{name}"
        default = defaults.get(name) if isinstance(defaults, dict) else None
        inner = list(_models_in(field.annotation))
        kind = _type(_whole(field))
        if not inner or kind:
            meaning = told.get((model.__name__, name))
            if meaning is None:
                raise Undocumented(
                    f"{key} has no description: write a docstring below `{name}` in {model.__name__} "
                    "(mirrorproxy/config/settings.py), then `make docs`"
                )
            if not kind:
                raise Undocumented(
                    f"{key} is of a type that has no name: add Written(...) to it in mirrorproxy/config/values.py"
                )
            yield key, kind, default, meaning
        for below in inner:
            yield from _rows(below, key, default, told)


def _row(key: str, kind: str, default: object, meaning: str) -> str:
    path = tuple("*" if part == "<registry>" else part for part in re.split(r"\.(?![^<]*>)", key))
    match default:
        case _ if key in _FOLLOWS:
            shown = _FOLLOWS[key]
        case None:
            shown = ""
        case bool():
            shown = f"`{str(default).lower()}`"
        case [_, *_]:
            shown = ", ".join(f"`{each}`" for each in default)
        case _:
            shown = f"`{default}`"
    reload = "restart" if path in NEEDS_RESTART else "yes"
    return f"| `{key}` | {kind} | {shown} | {_one_line(meaning).removesuffix('.')} | {reload} |\n".replace(
        "|  |", "| |"
    )


def _models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            yield from _models(inner)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _whole(field: FieldInfo) -> Any:
    """A field's type as it was written: pydantic takes what `Annotated` says apart."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def _written(annotation: Any) -> Iterator[tuple[Written, Any]]:
    """The words for a type, and those for what it is made of."""
    if get_origin(annotation) is Annotated:
        yield from ((part, annotation) for part in annotation.__metadata__ if isinstance(part, Written))
    for part in get_args(annotation):
        if get_origin(part) is not None:
            yield from _written(part)


def _type(annotation: Any) -> str:
    """What a type is called; nothing for a section, and for what has no name."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        names = [part.name for part in annotation.__metadata__ if isinstance(part, Written)]
        return names[-1] if names else _type(arguments[0])
    if get_origin(annotation) is tuple:
        return _several(_type(arguments[0]))
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{word}`" for word in arguments)
    if get_origin(annotation) in (Union, types.UnionType):
        return ", or ".join(_type(part) for part in arguments if part is not type(None))
    return _PLAIN.get(annotation, "")


def _several(name: str) -> str:
    words = [f"{word}es" if word.endswith("s") else f"{word}s" for word in name.split(" or ")]
    return " or ".join(words)


def _texts(source: str) -> dict[tuple[str, str], str]:
    """The text below each field, by class and name. Pydantic could read it too, but at each start of the program."""
    found = {}
    for model in ast.parse(source).body:
        if not isinstance(model, ast.ClassDef):
            continue
        for field, text in zip(model.body, model.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                    found[model.name, name] = words
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main() -> int:
    """Renews the page."""
    try:
        PAGE.write_text(page(PAGE.read_text()))
    except Undocumented as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
