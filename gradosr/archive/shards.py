"""Shards: what the archive holds, which version of it, and the name of the part each one becomes."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from gradosr.config import ImagesInput, ParquetInput, TarInput
from gradosr.errors import InputError, NotFound
from gradosr.store import Store, StoredObject, join

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".jp2", ".j2k", ".avif", ".heic", ".heif"),
)
"""What counts as an image by its name, in any case; formats that nothing here decodes still get their row."""

SUFFIXES = {"parquet": (".parquet",), "tar": (".tar", ".tar.gz", ".tgz"), "images": IMAGE_SUFFIXES}
"""By input kind: the names that belong to it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One unit of work: an input object, or a recorded group of single images."""

    name: str
    """Relative to the input URI; the first half of its images' keys."""
    uri: str
    version: str
    size: int
    """Bytes."""
    members: tuple[StoredObject, ...] = ()
    """The images of a group, in order; empty for a tar or Parquet shard."""
    modified: int | None = field(default=None, compare=False)
    """When its object was last modified, in seconds since 1970. None for a group, whose images have a time each."""
    part: str = field(init=False, compare=False)
    """Name of its part without ending: derived from URI and version, never from its place in the listing."""

    def __post_init__(self) -> None:
        """Name the part."""
        identity = f"{self.uri}\n{self.version}".encode(errors="surrogateescape")
        digest = hashlib.sha256(identity).hexdigest()[:20]
        stem = re.sub(r"[^A-Za-z0-9.-]+", "-", self.name)[-60:].strip(".-")
        object.__setattr__(self, "part", f"part-{stem}-{digest}")

    @property
    def stored(self) -> StoredObject:
        """The object to open, of a shard that is one."""
        return StoredObject(self.uri, self.size, self.version)


def as_text(name: str) -> str:
    r"""A file name as valid Unicode: bytes that are not UTF-8 (kept by Python as surrogates) become `\xNN`."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def list_shards(source: ParquetInput | TarInput, store: Store) -> list[Shard]:
    """The archive's files, sorted by name. Raises InputError where there are none."""
    found, _ = _find(source, store)
    return [
        Shard(as_text(name), stored.uri, stored.version, stored.size, modified=stored.modified)
        for name, stored in found.items()
    ]


def list_groups(
    source: ImagesInput, store: Store, recorded: Sequence[Sequence[str]]
) -> tuple[list[Shard], list[list[str]]]:
    """The archive's images as groups, and the groups that `recorded` does not hold yet; both hold names, in order.

    Recorded groups keep their images and their order, less those that vanished; one with none left is no shard.
    Other images form new groups, to be recorded behind the old ones: a group's number is its place in the record.
    Raises InputError where there is no image.
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


def locate(source: ParquetInput | TarInput | ImagesInput, name: str, store: Store) -> StoredObject:
    r"""The object of the archive whose name, as text, is `name`: a shard's, or of single images the key.

    Raises NotFound when there is none, or none that belongs to the archive: names come from tables of results, which
    may say anything.
    """
    suffixes = SUFFIXES[source.kind]
    folder, _, chosen = _listing(source.uri, suffixes, store)
    for real in dict.fromkeys((name, _BYTES.sub(_byte, name))):
        steps = real.split("/")
        if chosen(real) and real.lower().endswith(suffixes) and not _is_hidden(real) and not {"", "..", "."} & {*steps}:
            with suppress(NotFound):
                return store.stat(folder + real)
    raise NotFound(f"{as_text(folder)}{name}: no such object in the archive any more")


_BYTES = re.compile(r"\\x([89a-f][0-9a-f])")


def _byte(match: re.Match[str]) -> str:
    """Undoes `as_text`."""
    return bytes.fromhex(match[1]).decode("ascii", "surrogateescape")


def means(source: ParquetInput | TarInput | ImagesInput, uri: str, store: Store) -> bool:
    """Whether an object at `uri` would be a part of the archive."""
    suffixes = SUFFIXES[source.kind]
    folder, _, chosen = _listing(source.uri, suffixes, store)
    return uri.startswith(folder) and uri.endswith(suffixes) and chosen(uri.removeprefix(folder))


def _group(name: str, folder: str, members: dict[str, StoredObject]) -> Shard:
    versions = json.dumps([[member, stored.version] for member, stored in members.items()])
    return Shard(
        name=name,
        uri=f"{folder}#{name}",
        version=hashlib.sha256(versions.encode()).hexdigest(),
        size=sum(stored.size for stored in members.values()),
        members=tuple(members.values()),
    )


def _find(source: ParquetInput | TarInput | ImagesInput, store: Store) -> tuple[dict[str, StoredObject], str]:
    """The objects that `source` means, by name and sorted by it, and the folder that names are relative to."""
    suffixes = SUFFIXES[source.kind]
    folder, listing, chosen = _listing(source.uri, suffixes, store)
    found, others = {}, 0
    for stored in listing():
        name = stored.uri.removeprefix(folder)
        if chosen(name) and name.lower().endswith(suffixes) and not _is_hidden(name):
            found[name] = stored
        else:
            others += 1
    if not found:
        kinds = ", ".join(suffixes)
        advice = "name the folder that holds them, or a pattern such as FOLDER/train-*" + suffixes[0]
        raise InputError(f"{source.uri}: no {kinds} files there ({others} other objects); {advice}")
    return dict(sorted(found.items())), folder


def _listing(
    uri: str, suffixes: tuple[str, ...], store: Store
) -> tuple[str, Callable[[], Iterable[StoredObject]], Callable[[str], bool]]:
    """The folder of `uri` ("" or ending in /), what lists all that may match, and whether a name there does.

    One LIST, of the longest prefix without wildcards: also of a brace range, however many names it spells.
    """
    if wildcard := re.search(r"[*?\[{]", uri):
        prefix = uri[: wildcard.start()]
        folder = prefix.removesuffix(prefix.rpartition("/")[2])
        return folder, lambda: store.list(prefix), _matcher(uri.removeprefix(folder))
    if uri.lower().endswith(suffixes):
        try:
            file = uri.rpartition("/")[2]
            stored = store.stat(uri)
            return uri.removesuffix(file), lambda: [stored], lambda name: name == file
        except NotFound:
            pass  # a folder may be called so as well
    folder = join(uri, "")
    return folder, lambda: store.list(folder), lambda _: True


def _is_hidden(name: str) -> bool:
    """As other readers of folders have it: _SUCCESS, .git and what lies below such folders is no data."""
    return any(step.startswith(("_", ".")) for step in name.split("/"))


_TOKEN = re.compile(r"(\*\*/)|(\*\*)|(\*)|(\?)|\[([!^]?)(\]?[^\]]*)\]|\{(\d+)\.\.(\d+)\}|\{([^{}]*)\}|(.)", re.DOTALL)
_DASH = re.escape("-")


def _matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a name matches `pattern`: * ? [abc] [!abc] within a folder, ** across, {00..99} and {a,b}."""
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
    """The regular expression of `pattern`, with one group per numeric range, whose bounds are added to `ranges`."""

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
