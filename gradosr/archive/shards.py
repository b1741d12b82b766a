"""Shards: which objects an archive consists of, in which version, and the name of the part that each one becomes."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from gradosr.config import ImagesInput
from gradosr.config.inputs import InputSettings
from gradosr.errors import AccessDenied, InputError, NotFound
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
    members: tuple[StoredObject, ...] = ()
    """Images of a group, in order; empty for a shard that is one object."""
    modified: int | None = field(default=None, compare=False)
    """Time its object was last modified, in seconds since 1970; None for a group, whose images each have their own."""
    part: str = field(init=False, compare=False)
    """Name of its part without the ending, derived from URI and version and never from the position in the listing."""

    def __post_init__(self) -> None:
        """Derive the name of the part."""
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


def list_shards(source: InputSettings, store: Store) -> list[Shard]:
    """List the archive's files, sorted by name, as one shard each. Raises InputError if there are none."""
    found, _ = _find(source, store)
    return [
        Shard(as_text(name), stored.uri, stored.version, stored.size, modified=stored.modified)
        for name, stored in found.items()
    ]


def list_groups(
    source: ImagesInput, store: Store, recorded: Sequence[Sequence[str]]
) -> tuple[list[Shard], list[list[str]]]:
    """List the archive's images in groups, as one shard each, and the new groups, which are not recorded yet.

    `recorded` and the new groups hold the names of their images, in order. A recorded group keeps its images and their
    order; images that no longer exist are left out, and a group without any image left is not listed. All other images
    form new groups, to be recorded after the existing ones: a group's number is its position in the record.
    Raises InputError if there are no images.
    """
    found, folder = _find(source, store)
    known = {name for group in recorded for name in group}
    fresh = [name for name in found if name not in known]
    new = [fresh[start : start + source.group_size] for start in range(0, len(fresh), source.group_size)]
    shards = []
    for number, group in enumerate([*recorded, *new], start=1):
        if left := [name for name in group if name in found]:
            shards.append(_group(f"group-{number:06d}", folder, {name: found[name] for name in left}))
    return shards, new


def locate(source: InputSettings, name: str, store: Store) -> StoredObject:
    """Find the object of the archive whose name, as text, is `name`: the name of a shard or the key of a single image.

    Raises NotFound if there is no such object or if it does not belong to the archive: names come from tables of
    results, whose content cannot be trusted.
    """
    suffixes = source.suffixes
    folder, _, chosen = _listing(source, store)
    for real in dict.fromkeys((name, _BYTES.sub(_byte, name))):
        steps = real.split("/")
        if chosen(real) and real.lower().endswith(suffixes) and not {"", "..", "."} & {*steps}:
            with suppress(NotFound):
                return store.stat(folder + real)
    raise NotFound(f"{as_text(folder)}{name}: no such object in the archive any more")


_BYTES = re.compile(r"\\x([89a-f][0-9a-f])")


def _byte(match: re.Match[str]) -> str:
    """Turn an escape that `as_text` wrote back into the byte it stands for."""
    return bytes.fromhex(match[1]).decode("ascii", "surrogateescape")


def means(source: InputSettings, uri: str, store: Store) -> bool:
    """Tell whether an object at `uri` would belong to the archive."""
    if not uri.endswith(source.suffixes):
        return False
    folder, _, chosen = _listing(source, store)
    return uri.startswith(folder) and chosen(uri.removeprefix(folder))


def _group(name: str, folder: str, members: dict[str, StoredObject]) -> Shard:
    versions = json.dumps([[member, stored.version] for member, stored in members.items()])
    return Shard(
        name=name,
        uri=f"{folder}#{name}",
        version=hashlib.sha256(versions.encode()).hexdigest(),
        size=sum(stored.size for stored in members.values()),
        members=tuple(members.values()),
    )


def _find(source: InputSettings, store: Store) -> tuple[dict[str, StoredObject], str]:
    """Find the objects that `source` selects, sorted by name, and the folder that their names are relative to."""
    suffixes = source.suffixes
    folder, listing, chosen = _listing(source, store)
    found, others = {}, 0
    for stored in listing():
        name = stored.uri.removeprefix(folder)
        if chosen(name) and name.lower().endswith(suffixes):
            found[name] = stored
        else:
            others += 1
    if not found:
        kinds = ", ".join(suffixes)
        advice = "name the folder that holds them, or a pattern such as FOLDER/train-*" + suffixes[0]
        raise InputError(f"{source.uri}: no {kinds} files there ({others} other objects); {advice}")
    return dict(sorted(found.items())), folder


def _listing(
    source: InputSettings, store: Store
) -> tuple[str, Callable[[], Iterable[StoredObject]], Callable[[str], bool]]:
    """Split the input's URI into a folder ("" or ending in /), a function that lists candidates, and a test of names.

    Candidates are found by one LIST of the longest prefix without wildcards, even for a long brace range. A file or
    folder whose own name has the characters of a pattern is taken literally. A file named in full is never hidden.
    """
    uri, folder, visible = source.uri, join(source.uri, ""), _visible(source.hidden)
    wildcard = re.search(r"[*?\[{]", uri)
    if uri.lower().endswith(source.suffixes):
        with suppress(NotFound, *([AccessDenied] if wildcard else [])):  # a folder may be called so as well
            file = uri.rpartition("/")[2]
            stored = store.stat(uri)
            return uri.removesuffix(file), lambda: [stored], lambda name: name == file
    if wildcard and not _exists(folder, store):
        prefix = uri[: wildcard.start()]
        folder = prefix.removesuffix(prefix.rpartition("/")[2])
        matches = _matcher(uri.removeprefix(folder))
        return folder, lambda: store.list(prefix), lambda name: matches(name) and visible(name)
    return folder, lambda: store.list(folder), visible


def _exists(folder: str, store: Store) -> bool:
    with suppress(NotFound, AccessDenied):
        return next(iter(store.list(folder)), None) is not None
    return False


def _visible(hidden: tuple[str, ...]) -> Callable[[str], bool]:
    """Return a test of names: no step of the path begins with one of `hidden`, and none was added by macOS."""
    return lambda name: not any(step.startswith(hidden) for step in name.split("/")) and not is_apple_double(name)


def is_apple_double(name: str) -> bool:
    """Tell whether macOS added a file to an archive or a disk beside another one, whose attributes it holds."""
    *folders, file = name.split("/")
    return file.startswith("._") or "__MACOSX" in folders


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
