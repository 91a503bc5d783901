"""Options of a command, read off the function that does its work.

A parameter is an option of its name; the fields of a settings dataclass are options as well. Types
and defaults are those of the signature, help is the docstring's `Args:` and the docstrings of
fields; what a word such as --lenvm means everywhere is said once, in `words`. Types:

    bool                        a flag
    Literal["a", "b"]           one of these
    Sequence[X], tuple[X, ...]  commas between: --loads 0.8,1.1
    list[X]                     the option is repeated: --exclude a.jsonl --exclude b.jsonl
    X | None                    may be left out

Parameters of other types keep their defaults and are no options.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import os
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import docstring_parser
import tyro

from lenvm_rl.cli.table import Command
from lenvm_rl.cli.words import WORDS

_REQUIRED = inspect.Parameter.empty
_SHOWN = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}
_CALLED = {int: "a whole number", float: "a number", str: "text", Path: "a path"}
_HIDDEN = ("extra", "progress")  # no options, though their types would do


class Mistake(Exception):
    """A value that an option cannot take; its text is the sentence for the user.

    No ValueError, of which tyro would make a box.
    """


@dataclasses.dataclass(frozen=True)
class Option:
    """One option, or one argument by position."""

    name: str
    kind: Any
    """int, float, str, Path, bool, or a tuple of choices."""
    default: Any = _REQUIRED
    help: str = ""
    many: Literal["", "commas", "repeated"] = ""

    @property
    def flag(self) -> str:
        """As it is written on the command line."""
        return "-n" if self.name == "n" else "--" + self.name.replace("_", "-")


def parse(
    function: Callable[..., Any], words: Sequence[str], prog: str, command: Command
) -> tuple[dict[str, Any], Path | None]:
    """Arguments to call `function` with, and the file of --json.

    Raises:
        Mistake: a value that its option cannot take.
        ValueError: settings that contradict each other; names that stand for nothing.
        SystemExit: --help was asked for, or an option is missing or unknown (status 2).
    """
    options = options_of(function)
    by_place = [options.pop(name) for name in command.by_place]
    options["json"] = Option("json", Path, None, "Also write the figures to this file.")
    fields = [_field(option, by_place=True) for option in by_place]
    fields += [_field(option, by_place=False) for option in options.values()]
    parsed = tyro.cli(
        dataclasses.make_dataclass("Options", fields, kw_only=True),
        prog=prog,
        args=words,
        description=_description(function),
        config=(tyro.conf.FlagCreatePairsOff,),
        return_unknown_args=command.passes_on,  # pyright: ignore[reportArgumentType]
    )
    parsed, extra = parsed if command.passes_on else (parsed, [])
    given = {**vars(parsed), **({"extra": extra} if command.passes_on else {})}
    json_file = given.pop("json")
    return arguments_of(function, given, command.as_typed), json_file


def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """The options of a command by name, in the order of its signature."""
    found: dict[str, Option] = {}
    about = _about(function)
    for name, (kind, default) in _parameters(function).items():
        if settings := _dataclass(kind):
            found |= {key: option for key, option in _fields(settings) if key not in found}
        word = WORDS.get(name)
        option = _option(name, kind, default, about.get(name, ""))
        if option is None and word is not None and word.kind is not None:
            default = word.default if default is _REQUIRED else default
            option = _option(name, word.kind, default, "")
            for other in word.adds:
                found.setdefault(other, Option(other, int, WORDS[other].default, WORDS[other].help))
        if option is not None and name not in _HIDDEN:
            found[name] = option
    return found


def arguments_of(
    function: Callable[..., Any], given: Mapping[str, Any], as_typed: Sequence[str] = ()
) -> dict[str, Any]:
    """Arguments of a function from values by name: settings made whole, names looked up.

    Args:
        given: what was said; options that are not among them have their defaults.
        as_typed: words that are not looked up.
    """
    kinds = {name: kind for name, (kind, _) in _parameters(function).items()}
    values = {name: option.default for name, option in options_of(function).items()} | dict(given)
    for name, word in WORDS.items():  # in this order: prompts before their grader
        value = values.get(name)
        if word.least is not None and value is not None and value < word.least:
            raise Mistake(f"{Option(name, int).flag} must be at least {word.least}, got {value}.")
        if word.read is not None and value is not None and name not in as_typed:
            word.read(values, name, _scalar(kinds.get(name, str)) is not None)
    if "progress" in kinds:
        values["progress"] = True
    return _arguments(kinds, values)


def _parameters(function: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Type and default of each parameter."""
    hints = typing.get_type_hints(function)
    parameters = inspect.signature(function).parameters
    return {name: (hints.get(name, Any), value.default) for name, value in parameters.items()}


def _fields(settings: type) -> Iterator[tuple[str, Option]]:
    """The options of a dataclass, and of those within it."""
    hints, about = typing.get_type_hints(settings), _about(settings)
    for field in dataclasses.fields(settings):
        default = field.default
        if default is dataclasses.MISSING:
            made = field.default_factory
            default = _REQUIRED if made is dataclasses.MISSING else made()
        if inner := _dataclass(hints[field.name]):
            yield from _fields(inner)
        option = _option(field.name, hints[field.name], default, about.get(field.name, ""))
        if option is not None:
            yield field.name, option


def _arguments(kinds: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, dataclasses among them made of the values of their fields."""
    found = {name: values[name] for name in kinds if name in values}
    for name, kind in kinds.items():
        if settings := _dataclass(kind):
            hints = typing.get_type_hints(settings)
            fields = {field.name: hints[field.name] for field in dataclasses.fields(settings)}
            found[name] = settings(**_arguments(fields, values))
    return found


def _option(name: str, kind: Any, default: Any, text: str) -> Option | None:
    """An option, or None where a type is no option's."""
    kind, many = _without_none(kind), ""
    if typing.get_origin(kind) in (Sequence, list, tuple):
        many = "repeated" if typing.get_origin(kind) is list else "commas"
        kind = typing.get_args(kind)[0]
    scalar = _scalar(kind)
    if scalar is None or (many and scalar is bool):
        return None
    word = WORDS.get(name)
    text = text[:1].upper() + text[1:] or (word.help if word else "")
    return Option(name, scalar, default, text, many)


def _scalar(kind: Any) -> Any:
    """int, float, str, Path, bool, a tuple of choices, or None."""
    kind = _without_none(kind)
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    parts = set(typing.get_args(kind)) if _is_union(kind) else {kind}
    paths = {part for part in parts if Path is part or typing.get_origin(part) is os.PathLike}
    if paths and parts - paths <= {str}:
        return Path
    return kind if kind in (*_SHOWN, bool) else None


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _without_none(kind: Any) -> Any:
    if not _is_union(kind):
        return kind
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    return functools.reduce(operator.or_, parts)


def _dataclass(kind: Any) -> type | None:
    kind = _without_none(kind)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def _about(thing: Any) -> dict[str, str]:
    """What a docstring says of each parameter, and what stands under each field."""
    google = docstring_parser.DocstringStyle.GOOGLE
    if isinstance(thing, type):
        parsed = docstring_parser.parse_from_object(thing, google)
    else:
        parsed = docstring_parser.parse(inspect.getdoc(thing) or "", google)
    return {
        name.strip(): " ".join((entry.description or "").split())
        for entry in parsed.params
        for name in entry.arg_name.split(",")
    }


def _description(function: Callable[..., Any]) -> str:
    """What stands above the options: paragraphs of one line each, to be copied from."""
    text = re.split(r"\n(?:Args|Returns|Yields|Raises):\n", inspect.getdoc(function) or "")[0]
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def _field(option: Option, *, by_place: bool) -> tuple[Any, ...]:
    """The option as a field of the class that tyro reads."""
    default, hint = option.default, ""
    if default is _REQUIRED:
        hint = "(required)"
    elif default is not None and default is not False and default not in ((), ""):
        hint = f"(default: {_text(default)})"
    aliases = ("-n",) if option.name == "n" else None
    about = tyro.conf.arg(help=option.help, help_behavior_hint=hint, aliases=aliases)
    kind: Any = bool if option.kind is bool else Annotated[Any, _reader(option, by_place)]
    if option.many == "repeated":
        kind = Annotated[list[kind], tyro.conf.UseAppendAction]
        default = default or []
    kind = Annotated[kind, about, tyro.conf.Positional] if by_place else Annotated[kind, about]
    if default is _REQUIRED:
        return option.name, kind
    return option.name, kind, dataclasses.field(default_factory=lambda: default)


def _reader(option: Option, by_place: bool) -> Any:
    """How tyro makes a value of a word."""
    name = option.name.replace("_", "-")
    shown = _SHOWN[option.kind] if option.kind in _SHOWN else "|".join(option.kind)
    shown += ",..." if option.many == "commas" else ""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=name if by_place else shown,
        instance_from_str=lambda words: _read(option, words[0], name if by_place else option.flag),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [_text(value)],
    )


def _read(option: Option, text: str, called: str) -> Any:
    """The value, or a sentence."""
    choices = "" if option.kind in _CALLED else ", ".join(option.kind)

    def one(part: str) -> Any:
        if choices and part not in option.kind:
            raise ValueError(part)
        return part if choices else option.kind(part)

    try:
        if option.many == "commas":
            return tuple(one(part.strip()) for part in text.split(",") if part.strip())
        return one(text)
    except ValueError:
        what = f"one of {choices}" if choices else _CALLED[option.kind]
        if option.many == "commas":
            what = f"some of {choices}" if choices else f"{_CALLED[option.kind][2:]}s"
            what += " with commas between"
        raise Mistake(f"{called} must be {what}, got {text!r}.") from None


def _text(value: Any) -> str:
    """A default in help."""
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if text.isprintable() else repr(text)
