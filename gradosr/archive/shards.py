"""Shards: which objects an archive consists of, in which version, and the name of the part that each one becomes."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from gradosr.archive.names import APPLE_DOUBLE, HIDDEN, count, is_apple_double, kind_of, listed
from gradosr.config import ImagesInput
from gradosr.config.inputs import InputSettings
from gradosr.errors import InputError, NotFound, StoreError
from gradosr.store import Store, StoredObject, join

IMAGE_SUFFIXES = ImagesInput.suffixes
"""Endings of the names of image files, in lower case. Images in formats that cannot be decoded here get a row, too."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work: an input object, or a recorded group of single images."""

    name: str
    """Path relative to the input URI, with which the keys of its images begin; for a group, its number."""
    uri: str
    version: str
    size: int
    """Size in bytes."""
    piece: str = field(default="", compare=False)
    """URI of the file that lists the images of a group; empty for a shard that is one object."""
    modified: int | None = field(default=None, compare=False)
    """Time its object was last modified, in seconds since 1970; None for a group, whose images each have their own."""
    part: str = field(default="", compare=False)
    """Name of its part without the ending, derived from URI and version and never from the position in the listing.

    It is given for a part that is scored again, whose name stays."""

    def __post_init__(self) -> None:
        """Derive the name of the part."""
        if self.part:
            return
        identity = f"{self.uri}\n{self.version}".encode(errors="surrogateescape")
        digest = hashlib.sha256(identity).hexdigest()[:20]
        stem = re.sub(r"[^A-Za-z0-9.-]+", "-", self.name)[-60:].strip(".-")
        object.__setattr__(self, "part", f"part-{stem}-{digest}")

    @property
    def stored(self) -> StoredObject:
        """Object to open; only for a shard that is one object."""
        return StoredObject(self.uri, self.size, self.version)


def as_text(name: str) -> str:
    r"""Return a file name as valid Unicode: bytes that are not UTF-8 (surrogates in Python) become `\xNN`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def list_shards(source: InputSettings, store: Store, passed_over: Counter[str] | None = None) -> list[Shard]:
    """List the archive's files, sorted by name, as one shard each; count in `passed_over`, by kind, what else is there.

    Raises InputError if there are none.
    """
    _, found = objects_of(source, store, passed_over)
    return [
        Shard(as_text(name), stored.uri, stored.version, stored.size, modified=stored.modified)
        for name, stored in found
    ]


def objects_of(
    source: InputSettings, store: Store, passed_over: Counter[str] | None
) -> tuple[str, Iterator[tuple[str, StoredObject]]]:
    """Return the folder that names are relative to, and the names and objects that belong to the archive, by name.

    They are listed while they are iterated over, which raises InputError if there are none. What else is there is
    counted in `passed_over`, by kind.
    """
    selection = _select(source, _literal(source.uri, store), store)
    return selection.folder, _chosen(source, selection, Counter[str]() if passed_over is None else passed_over)


def _chosen(source: InputSettings, selection: "_Selection", kinds: Counter[str]) -> Iterator[tuple[str, StoredObject]]:
    start, last, others = len(selection.folder), "", 0
    for stored in selection.listing():
        name = stored.uri[start:]
        fate = selection.fate(name)
        if fate:
            others += 1
            if fate != _NOT_CHOSEN:
                count(fate, kinds)
            continue
        if name < last:
            raise StoreError(
                f"{stored.uri}: listed after {selection.folder}{last}; a store lists in order of the names"
            )
        if name != last:
            last = name
            yield name, stored
    if not last:
        raise _none_found(source, others, kinds)


def _none_found(source: InputSettings, others: int, kinds: Counter[str]) -> InputError:
    wanted, there = ", ".join(source.suffixes), f": {listed(kinds)}" if kinds else ""
    advice = "name the folder that holds them, or a pattern such as FOLDER/train-*" + source.suffixes[0]
    if kinds[HIDDEN]:
        advice = f"names that begin with {' or '.join(source.hides)} are hidden until the URI names them; {advice}"
    return InputError(f"{source.uri}: no {wanted} files there ({others} other objects{there}); {advice}")


def check_found(source: InputSettings, store: Store) -> None:
    """Raise InputError, or NotFound, if nothing of the archive is there; only the beginning is listed."""
    next(objects_of(source, store, None)[1])


def check_empty(uri: str, store: Store) -> None:
    """Raise InputError if a folder that is to be filled holds objects already."""
    try:
        taken = next(iter(store.list(join(uri, ""))), None)
    except NotFound:  # a local folder that is created later
        return
    if taken is not None:
        raise InputError(f"{uri}: holds objects already ({taken.uri}); choose a new folder")


def locate(source: InputSettings, name: str, store: Store) -> StoredObject:
    """Find the object of the archive whose name, as text, is `name`: the name of a shard or the key of a single image.

    Raises NotFound if there is no such object or if it does not belong to the archive: names come from tables of
    results, whose content cannot be trusted.
    """
    # Instead of asking the store, once for each image, what of the URI exists by its letters, all readings are tried.
    for literal in reversed(_readings(source.uri)):
        selection = _select(source, literal, store)
        for real in dict.fromkeys((name, _BYTES.sub(_byte, name))):
            if not selection.fate(real) and not {"", "..", "."} & {*real.split("/")}:
                with suppress(NotFound):
                    return store.stat(selection.folder + real)
    raise NotFound(f"{source.uri}: no object {name} in the archive any more")


_BYTES = re.compile(r"\\x([89a-f][0-9a-f])")


def _byte(match: re.Match[str]) -> str:
    """Turn an escape that `as_text` wrote back into the byte it stands for."""
    return bytes.fromhex(match[1]).decode("ascii", "surrogateescape")


def means(source: InputSettings, uri: str, store: Store) -> bool:
    """Tell whether an object at `uri` would belong to the archive."""
    if not uri.endswith(source.suffixes):
        return False
    selection = _select(source, _literal(source.uri, store), store)
    return uri.startswith(selection.folder) and selection.chosen(uri.removeprefix(selection.folder))


_NOT_CHOSEN = "not chosen"


class _Selection(NamedTuple):
    """The meaning of an input's URI."""

    folder: str
    """Folder that names are relative to: "" or ending in /."""
    listing: Callable[[], Iterable[StoredObject]]
    """Function that lists candidates."""
    chosen: Callable[[str], bool]
    """Test of names against the pattern."""
    suffixes: tuple[str, ...]
    hides: tuple[str, ...]
    """Beginnings of steps of hidden names."""
    outright: bool = False
    """Whether the URI names one object."""

    def fate(self, name: str) -> str:
        """Return "" for a name that belongs to the archive, else _NOT_CHOSEN or the kind it is counted by."""
        if not self.chosen(name):
            return _NOT_CHOSEN
        if not self.outright and is_apple_double(name):
            return APPLE_DOUBLE
        if not name.lower().endswith(self.suffixes):
            return kind_of(name)
        hidden = self.hides and any(step.startswith(self.hides) for step in name.split("/"))
        return HIDDEN if hidden else ""


_WILDCARD = re.compile(r"[*?\[{]")
_NAMES_HIDDEN = re.compile(r"(?:\A|[/{,])[_.]")


def _readings(uri: str) -> list[str]:
    """Return the beginnings of `uri` that may be meant by their letters, the shortest, without wildcards, first.

    Each ends before a step with wildcards; the last is all of it.
    """
    steps = re.finditer(r"[^/]*/?", uri)
    return [*(uri[: step.start()] for step in steps if _WILDCARD.search(step[0])), uri]


def _literal(uri: str, store: Store) -> str:
    """Return the longest reading of `uri` that exists by its letters, or the one without wildcards.

    A folder may be called run[1], and then it is the one that is meant. This costs a LIST for a pattern.
    """
    literal, *longer = _readings(uri)
    for reading in longer:
        if not _exists(reading, store):
            break
        literal = reading
    return literal


def _exists(uri: str, store: Store) -> bool:
    """Tell whether there is an object, or a folder with objects, of exactly this name."""
    with suppress(NotFound):
        return any(one.uri == uri or one.uri.startswith(join(uri, "")) for one in store.list(uri))
    return False


def _select(source: InputSettings, literal: str, store: Store) -> _Selection:
    """Read the URI of an input, taking its beginning `literal` by its letters and the rest as a pattern.

    Candidates are found by one LIST of the longest prefix without wildcards, even for a long brace range.
    """
    uri, suffixes = source.uri, source.suffixes
    if wildcard := _WILDCARD.search(uri, len(literal)):
        prefix = uri[: wildcard.start()]
        folder = prefix.removesuffix(prefix.rpartition("/")[2])
        pattern = uri.removeprefix(folder)
        hides = () if _NAMES_HIDDEN.search(pattern) else source.hides  # as in a shell
        return _Selection(folder, lambda: store.list(prefix), _matcher(pattern), suffixes, hides)
    if uri.lower().endswith(suffixes):
        try:
            file = uri.rpartition("/")[2]
            stored = store.stat(uri)
            folder = uri.removesuffix(file)
            return _Selection(folder, lambda: [stored], lambda name: name == file, suffixes, (), outright=True)
        except NotFound:
            pass  # a folder may be called so as well
    folder = join(uri, "")
    return _Selection(folder, lambda: store.list(folder), lambda _: True, suffixes, source.hides)


_TOKEN = re.compile(r"(\*\*/)|(\*\*)|(\*)|(\?)|\[([!^]?)(\]?[^\]]*)\]|\{(\d+)\.\.(\d+)\}|\{([^{}]*)\}|(.)", re.DOTALL)
_DASH = re.escape("-")


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Compile `pattern` into a test of names: * ? [abc] [!abc] within a folder, ** across folders, {00..99}, {a,b}."""
    ranges: list[tuple[int, int]] = []
    if pattern.endswith("/"):
        pattern += "**"
    try:
        compiled = re.compile(_expression(pattern, ranges), re.DOTALL)
    except re.error as error:
        raise InputError(f"{pattern}: not a pattern that can be matched: {error}") from error

    def matches(name: str) -> bool:
        match = compiled.fullmatch(name)
        return match is not None and all(
            number is None or low <= int(number) <= high
            for number, (low, high) in zip(match.groups(), ranges, strict=True)
        )

    return matches


def _expression(pattern: str, ranges: list[tuple[int, int]]) -> str:
    """Translate `pattern` into a regular expression with a group per numeric range; append their bounds to `ranges`."""

    def translate(token: re.Match[str]) -> str:
        folders, deep, star, one, negated, letters, first, last, choices, literal = token.groups()
        if first is not None:
            ranges.append((min(int(first), int(last)), max(int(first), int(last))))
            width = max(len(first), len(last))
            padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
            return rf"([0-9]{{{width}}})" if padded else "(0|[1-9][0-9]*)"
        if choices is not None:
            return "(?:" + "|".join(_expression(choice, ranges) for choice in choices.split(",")) + ")"
        if letters is not None:
            return f"(?!/)[{'^' * bool(negated)}{re.escape(letters).replace(_DASH, '-')}]"
        wild = {folders: "(?:.*/)?", deep: ".*", star: "[^/]*", one: "[^/]"}
        return next((meaning for found, meaning in wild.items() if found), re.escape(literal or ""))

    return _TOKEN.sub(translate, pattern)
