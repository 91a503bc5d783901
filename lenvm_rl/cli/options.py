"""Options of a command, read off the function that does its work.

A parameter is an option of its name; the fields of a settings dataclass are options as well. Types
and defaults are those of the signature, help is the docstring's `Args:` and the docstrings of
fields; what a word such as --lenvm means everywhere is said once, in `words`. Types:

    bool                      a flag
    Sequence[X], tuple[X, ..]  commas between: --loads 0.8,1.1
    list[X]                   the option is repeated: --exclude a.jsonl --exclude b.jsonl
    X | None                  may be left out

Parameters of other types keep their defaults and are no options (`progress`, say).
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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import docstring_parser
import tyro

from lenvm_rl.cli.table import Command
from lenvm_rl.cli.words import WORDS

_NOTHING = inspect.Parameter.empty
_SCALARS = {int: "a whole number", float: "a number", str: "text", Path: "a path"}


HIDDEN = ("extra", "progress")  # parameters that are no options, though their types would do


class Mistake(Exception):
    """A value that an option cannot take; its text is the sentence for the user."""


@dataclasses.dataclass(frozen=True)
class Option:
    """One option, or one argument by position."""

    name: str
    kind: Any
    """int, float, str, Path, bool, or tuple of choices."""
    default: Any = _NOTHING
    help: str = ""
    many: str = ""
    """"commas", "repeated", or one value only."""

    @property
    def flag(self) -> str:
        """As it is written on the command line."""
        return "-n" if self.name == "n" else "--" + self.name.replace("_", "-")


def parse(
    function: Callable[..., Any],
    words: Sequence[str],
    prog: str,
    command: Command,
) -> tuple[dict[str, Any], Path | None]:
    """Arguments to call `function` with, and the file of --json.

    Raises:
        Mistake: a value that its option cannot take.
        ValueError: settings that contradict each other; names that stand for nothing.
        SystemExit: --help was asked for, or an option is missing or unknown (status 2).
    """
    options = {option.name: option for option in options_of(function)}
    options["json"] = Option("json", Path, None, "Also write the figures to this file.")
    positional = command.by_place
    fields = [_field(option, by_place=name in positional) for name, option in options.items()]
    fields.sort(key=lambda field: positional.index(field[0]) if field[0] in positional else 99)
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    common: dict[str, Any] = {"prog": prog, "args": words}
    common["description"] = _description(function)
    namespace = dataclasses.make_dataclass("Options", fields, kw_only=True)
    extra: list[str] = []
    if command.passes_on:
        parsed, extra = tyro.cli(namespace, config=config, return_unknown_args=True, **common)
    else:
        parsed = tyro.cli(namespace, config=config, **common)
    given = {
        option.name: _whole(option, getattr(parsed, option.name)) for option in options.values()
    }
    json_file = given.pop("json")
    _check_least(given)
    if command.passes_on:
        given["extra"] = extra
    return _call_with(function, given, command.as_typed), json_file


def options_of(function: Callable[..., Any]) -> list[Option]:
    """The options of a command, in the order of its signature."""
    found: dict[str, Option] = {}
    for name, kind, default, text in _parameters(function):
        word = WORDS.get(name)
        for settings in _dataclasses(kind):
            for option in _fields(settings):
                found.setdefault(option.name, option)
        option = _option(name, kind, default, text)
        if option is None and word is not None and word.kind is not None:
            option = _option(name, word.kind, word.default if default is _NOTHING else default, "")
        if option is None or name in HIDDEN:
            continue
        found[name] = option
        if word is not None:
            found[name] = dataclasses.replace(option, help=option.help or word.help)
            if not _scalar(kind):
                for added in word.adds:
                    other = WORDS[added]
                    found.setdefault(added, Option(added, other.kind, other.default, other.help))
    return list(found.values())


def _parameters(function: Callable[..., Any]) -> Iterator[tuple[str, Any, Any, str]]:
    hints = typing.get_type_hints(function)
    about = _about(function)
    for name, parameter in inspect.signature(function).parameters.items():
        yield name, hints.get(name, Any), parameter.default, about.get(name, "")


def _fields(settings: type) -> Iterator[Option]:
    hints, about = typing.get_type_hints(settings), {}
    for part in reversed(settings.__mro__[:-1]):
        about |= _about(part)
    for field in dataclasses.fields(settings):
        kind, default = hints[field.name], field.default
        if default is dataclasses.MISSING:
            made = field.default_factory
            default = _NOTHING if made is dataclasses.MISSING else made()
        for inner in _dataclasses(kind):
            yield from _fields(inner)
        option = _option(field.name, kind, default, about.get(field.name, ""))
        if option is not None:
            word = WORDS.get(field.name)
            yield dataclasses.replace(option, help=option.help or (word.help if word else ""))


def _option(name: str, kind: Any, default: Any, text: str) -> Option | None:
    """An option, or None where a type is no option's."""
    kind, many = _without_none(kind), ""
    origin = typing.get_origin(kind)
    if origin in (Sequence, list, tuple):
        many = "repeated" if origin is list else "commas"
        kind = typing.get_args(kind)[0]
    scalar = _scalar(kind)
    if scalar is None or (many and scalar is bool):
        return None
    if isinstance(default, (list, tuple)):
        default = type(default)(default)
    return Option(name, scalar, default, text[:1].upper() + text[1:], many)


def _scalar(kind: Any) -> Any:
    """int, float, str, Path, bool, a tuple of choices, or None."""
    kind = _without_none(kind)
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    if typing.get_origin(kind) in (Union, types.UnionType):
        parts = {part for part in typing.get_args(kind)}
        paths = {part for part in parts if part is Path or typing.get_origin(part) is os.PathLike}
        if parts - paths in ({str}, set()) and paths:
            return Path
        return float if parts == {int, float} else None
    if typing.get_origin(kind) is os.PathLike:
        return Path
    return kind if kind in (*_SCALARS, bool) else None


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (Union, types.UnionType):
        parts = [part for part in typing.get_args(kind) if part is not type(None)]
        return functools.reduce(operator.or_, parts)
    return kind


def _dataclasses(kind: Any) -> list[type]:
    kind = _without_none(kind)
    return [kind] if isinstance(kind, type) and dataclasses.is_dataclass(kind) else []


def _about(thing: Any) -> dict[str, str]:
    """What a docstring says of each parameter, and what stands under each field."""
    parsed = (
        docstring_parser.parse_from_object(thing)
        if isinstance(thing, type)
        else (
            docstring_parser.parse(
                inspect.getdoc(thing) or "", docstring_parser.DocstringStyle.GOOGLE
            )
        )
    )
    return {
        name.strip(): " ".join((entry.description or "").split())
        for entry in parsed.params
        for name in entry.arg_name.split(",")
    }


def _description(function: Callable[..., Any]) -> str:
    """What stands above the options: paragraphs of one line each, examples last."""
    text = re.split(r"\n(?:Args|Returns|Yields|Raises):\n", inspect.getdoc(function) or "")[0]
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]
    return "\n\n".join(paragraphs)


def _field(option: Option, *, by_place: bool) -> tuple[Any, ...]:
    """The option as a field of the class that tyro reads."""
    hidden = option.default is None or option.default is _NOTHING or option.default is False
    shown = "" if hidden else _text(option.default)
    settings: dict[str, Any] = {"help": option.help}
    settings["help_behavior_hint"] = (
        "(required)" if option.default is _NOTHING else (f"(default: {shown})" if shown else "")
    )
    if option.name == "n":
        settings["aliases"] = ("-n",)
    marks: list[Any] = [tyro.conf.Positional] if by_place else []
    if option.kind is bool:
        kind: Any = bool
    else:
        kind = Annotated[Any, _reader(option, by_place)]
        if option.many == "repeated":
            kind = list[kind]
            marks.append(tyro.conf.UseAppendAction)
    kind = Annotated[(kind, tyro.conf.arg(**settings), *marks)]
    if option.default is _NOTHING:
        return option.name, kind
    default = option.default
    if option.many == "repeated" and default is None:
        default = []
    return option.name, kind, dataclasses.field(default_factory=lambda: default)


def _reader(option: Option, by_place: bool) -> Any:
    names = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}
    metavar = names[option.kind] if option.kind in names else "|".join(option.kind)
    if option.many == "commas":
        metavar += ",..."
    called = option.name.replace("_", "-") if by_place else option.flag
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=option.name.replace("_", "-") if by_place else metavar,
        instance_from_str=lambda words: _read(option, words[0], called),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [_text(value)],
    )


def _read(option: Option, text: str, called: str) -> Any:
    """The value, or a sentence."""
    if option.many == "commas":
        try:
            return tuple(_one(option.kind, part.strip()) for part in text.split(","))
        except ValueError:
            what = "numbers" if option.kind is float else "whole numbers"
            what = what if option.kind in (int, float) else f"some of {', '.join(option.kind)}"
            raise Mistake(f"{called} must be {what} with commas between, got {text!r}.") from None
    try:
        return _one(option.kind, text)
    except ValueError:
        what = _SCALARS.get(option.kind) or f"one of {', '.join(map(str, option.kind))}"
        raise Mistake(f"{called} must be {what}, got {text!r}.") from None


def _one(kind: Any, text: str) -> Any:
    if isinstance(kind, type):
        return kind(text)
    if text not in kind:
        raise ValueError(text)
    return text


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return repr(value) if isinstance(value, str) and not value.isprintable() else str(value)


def _whole(option: Option, value: Any) -> Any:
    return None if option.many == "repeated" and option.default is None and not value else value


def _check_least(given: dict[str, Any]) -> None:
    for name, value in given.items():
        least = WORDS[name].least if name in WORDS else None
        if least is not None and value is not None and value < least:
            flag = Option(name, int).flag
            raise Mistake(f"{flag} must be at least {least}, got {value}.")


def _call_with(
    function: Callable[..., Any], given: dict[str, Any], as_typed: Sequence[str]
) -> dict[str, Any]:
    """Arguments of the function: settings made whole, names looked up."""
    arguments: dict[str, Any] = {}
    kinds = {name: kind for name, kind, _, _ in _parameters(function)}
    for name in WORDS:  # in this order: prompts before their grader
        read = WORDS[name].read
        if name in kinds and name not in as_typed and given.get(name) is not None and read:
            read(given, plain=_scalar(kinds[name]) is not None)
    for name, kind in kinds.items():
        for settings in _dataclasses(kind):
            arguments[name] = _made(settings, given)
        if name in given and name not in arguments:
            arguments[name] = given[name]
    if "progress" in kinds:
        arguments["progress"] = True
    return arguments


def _made(settings: type, given: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(settings)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        for inner in _dataclasses(hints[field.name]):
            values[field.name] = _made(inner, given)
        if field.name in given:
            values[field.name] = given[field.name]
    return settings(**values)
