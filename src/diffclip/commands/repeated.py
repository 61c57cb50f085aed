"""Options that are given several times: `--data a --data b` means `--data a b`, and `--out a --out b` nothing."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import Any, get_args, get_origin, get_type_hints

from tyro.conf import PositionalRequiredArgs

OPTION = re.compile(r"--?[A-Za-z]")


class GivenTwice(ValueError):
    """An option that takes one value has several."""


def options(command: Callable[..., None]) -> dict[str, bool]:
    """Every option of a command, without its dashes at the front, and whether it takes any number of values."""
    hints = get_type_hints(command, include_extras=True)
    keywords = [name for name, parameter in signature(command).parameters.items() if _is_option(parameter, hints[name])]
    return dict(pair for name in keywords for pair in _options(name, hints[name]))


def _is_option(parameter: Any, hint: Any) -> bool:
    return parameter.kind is parameter.KEYWORD_ONLY or dataclasses.is_dataclass(_bare(hint))


def _options(name: str, hint: Any, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """An option, or those of a dataclass by its fields, whose names a prefix joins unless it is told to be empty."""
    names = [mark.name for mark in getattr(hint, "__metadata__", ()) if getattr(mark, "name", None) is not None]
    given, kind = names[0] if names else name, _bare(hint)
    if dataclasses.is_dataclass(kind):
        inner = f"{prefix}{given}." if given else prefix
        required = set(get_args(PositionalRequiredArgs[int])[1:]) & set(getattr(hint, "__metadata__", ()))
        positional = [each.name for each in dataclasses.fields(kind) if required and _is_required(each)]
        for field, of_field in get_type_hints(kind, include_extras=True).items():
            if field not in positional:
                yield from _options(field, of_field, inner)
        return
    if any(map(dataclasses.is_dataclass, get_args(kind))):
        return  # a list of tables has no option
    kinds = [_bare(each) for each in get_args(kind)] if get_origin(kind) is not tuple else []
    yield (prefix + given).replace("_", "-"), any(map(_takes_several, [kind, *kinds]))


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is field.default_factory is dataclasses.MISSING


def _takes_several(kind: Any) -> bool:
    return get_origin(kind) in (dict, list) or (get_origin(kind) is tuple and ... in get_args(kind))


def _bare(hint: Any) -> Any:
    """A type without its annotations."""
    while hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    return hint


def join(command: Callable[..., None], arguments: Sequence[str]) -> list[str]:
    """The arguments with all values of an option behind its name, where it is given several times.

    Such an option goes to the end, so that what follows it is not taken for its value. Raises GivenTwice for an
    option that takes one value.
    """
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    known, chunks = options(command), _chunks(arguments[:end])
    values: dict[str, list[str]] = {}
    times: dict[str, int] = {}
    for chunk in chunks:
        name, several = _name(chunk[0], known), known.get(_name(chunk[0], known))
        if several is None:
            continue
        times[name] = times.get(name, 0) + 1
        if times[name] > 1 and not several:
            raise GivenTwice(f"--{name} is given {times[name]} times: it takes one value, so give it once")
        equals = chunk[0].partition("=")[1:]
        values.setdefault(name, []).extend([equals[1], *chunk[1:]] if equals[0] else chunk[1:])
    repeated = {name for name, count in times.items() if count > 1}
    kept: list[str] = []
    for chunk in chunks:
        if _name(chunk[0], known) not in repeated:
            kept += chunk
    return [*kept, *(word for name in sorted(repeated) for word in (f"--{name}", *values[name])), *arguments[end:]]


def _chunks(arguments: Sequence[str]) -> list[list[str]]:
    """Each option with what follows it up to the next; before the first, each word by itself.

    What follows `--name=value` is not its own.
    """
    chunks: list[list[str]] = []
    for word in arguments:
        last = chunks[-1] if chunks else [""]
        if OPTION.match(word) or not OPTION.match(last[0]) or "=" in last[0]:
            chunks.append([word])
        else:
            last.append(word)
    return chunks


def _name(word: str, known: dict[str, bool]) -> str:
    """The option that a word names, `--no-force` being `force`; the word itself where it names none."""
    name = word.partition("=")[0].removeprefix("--").replace("_", "-")
    if not word.startswith("--"):
        return word
    positive = re.sub(r"(^|\.)no-", r"\1", name)
    return positive if name not in known and positive in known else name
