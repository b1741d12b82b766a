"""A config to start from, filled from what lies around: images, weights, a bundle. Nothing is asked."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from gradosr.archive.kinds import class_folders, source_at
from gradosr.archive.shards import list_shards
from gradosr.bundle.manifest import MANIFEST, Manifest, read_manifest
from gradosr.config import LIBRARIES, ParquetInput, TarInput
from gradosr.config.schema import schema_line
from gradosr.config.settings import in_line
from gradosr.errors import ConfigError, InputError
from gradosr.store import Store, join
from gradosr.text import plural, printable

WEIGHTS = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
LABELS = ("label", "labels", "class", "category", "target", "fine_label")
"""Names of columns that are taken for labels."""
LOOKED_AT = 200
"""Members of a tar that are looked at for labels."""
NO_FOLDERS = "no folders of classes, so no labels"
COMMENT = 44
"""Column at which comments begin."""


@dataclass
class Source:
    """Images that were found, and what is known of them."""

    settings: dict[str, Any]
    classes: tuple[str, ...] = ()
    """Names of their classes: folders in order, or those of a column of Hugging Face's ClassLabel."""
    about: str = ""


@dataclass
class Found:
    """Things at the places that were looked at; the first of each kind counts."""

    weights: str | None = None
    bundle: str | None = None
    sources: list[Source] = field(default_factory=list)


def text_of(kind: str, found: Found, store: Store) -> str:
    """Return the text of a config of a kind: fit, score or screen. Raises the errors of reading."""
    write = {"fit": _fit, "score": _score, "screen": _screen}[kind]
    return schema_line(f"{kind}.schema.json") + write(found, store)


def look(places: Sequence[str], store: Store) -> Found:
    """Look at files and folders; without any, at those in the working directory."""
    found = Found()
    for place in places or sorted(str(path) for path in Path().iterdir() if not path.name.startswith((".", "_"))):
        if place.lower().endswith(WEIGHTS):
            found.weights = found.weights or place
        elif store.exists(join(place, MANIFEST)):
            found.bundle = found.bundle or place
        elif not store.exists(join(place, "run.json")):
            try:
                found.sources.append(source(place, store))
            except (InputError, ConfigError):
                if places:
                    raise
    return found


def source(uri: str, store: Store) -> Source:
    """Describe the images at a URI. Raises InputError if there are none."""
    settings = source_at(uri, store) | {"uri": uri}
    if settings["kind"] == "images":
        folders = class_folders(uri, store)
        return Source(settings, folders, f"{plural(len(folders), 'folder')} of classes" if folders else NO_FOLDERS)
    first = list_shards((TarInput if settings["kind"] == "tar" else ParquetInput)(**settings), store)[0]
    with store.open(first.stored) as body:
        if settings["kind"] == "parquet":
            return _columns(settings, body)
        names = _members(body)
    labelled = any(name.endswith(".cls") for name in names)
    return Source(settings, (), "labels in .cls members" if labelled else "no labels (.cls members)")


def _members(body: io.BufferedIOBase | Any) -> list[str]:
    try:
        with tarfile.open(fileobj=body, mode="r|*") as archive:
            return [member.name for member in islice(archive, LOOKED_AT)]
    except (tarfile.TarError, EOFError, OSError):
        return []


def _columns(settings: dict[str, Any], body: Any) -> Source:
    """Choose the columns of images and labels by types and names; class names are in Hugging Face's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = pq.ParquetFile(body, pre_buffer=False).schema_arrow
    images = [one.name for one in columns if pa.types.is_struct(one.type) or pa.types.is_binary(one.type)]
    labels = [one.name for one in columns if one.name in LABELS]
    features = json.loads((columns.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = tuple(features.get(labels[0], {}).get("names", ())) if labels else ()
    settings |= {"image_column": images[0]} if images and images[0] != "image" else {}
    settings |= {"label_column": labels[0]} if labels else {}
    settings |= {"label_names": list(names)} if names else {}
    return Source(settings, names, f"columns {', '.join(columns.names)}")


def _fit(found: Found, store: Store) -> str:
    known = next((one for one in found.sources if one.classes), None) or next(iter(found.sources), None)
    classes = known.classes if known else ()
    lines = [
        "# Fits an unknown detector to a classifier, from labelled images that it was not trained on:",
        "#   gradosr fit fit.yaml",
        "classifier:",
    ]
    lines += _classifier(found, classes, store)
    lines += [
        *_input(known, "photos/"),
        _line("held_out: " + ("1" if found.weights else "0.3"), "share not trained on, or a file that lists the keys"),
        _line("detector: {kind: one_class}", "`gradosr schema fit` lists the others"),
        _line("false_alarm_rate: 0.05", "share of known images that may be called unknown"),
        _line("bundle: bundle/", "where classifier, detector and calibration are written"),
    ]
    return "\n".join(lines) + "\n"


def _classifier(found: Found, classes: Sequence[str], store: Store) -> list[str]:
    arch, about = None, "torchvision:NAME, timm:NAME, hf:FOLDER or package.module:factory"
    number = None
    if found.weights:
        from gradosr.classifier.recognise import recognise

        number, arch = recognise(store, found.weights)
        about = "recognised by the weights' names and shapes" if arch else f"YOURS: {about}"
    names = list(classes) or [f"class {index}" for index in range(number or 2)]
    told = "in the order of the logits" + ("" if classes else ": FILL IN")
    if number and classes and number != len(classes):
        told += f"; the weights have {number} classes, and there are {len(classes)} here: NAME THEM ALL"
    weights = f"{number or 'unknown number of'} classes" if found.weights else ""
    return [
        _line(f"  arch: {in_line(arch or 'torchvision:resnet18')}", about),
        *([_line(f"  weights: {in_line(found.weights)}", weights)] if found.weights else ()),
        _line(f"  classes: {in_line(names)}", told),
        _line("  # transform: {resize: 256, crop: 224}", "and mean, std; default: the library's for its own weights"),
        *([] if found.weights else [_line("train: {epochs: 20}", "no weights were found, so a recipe trains them")]),
    ]


def _input(known: Source | None, otherwise: str) -> list[str]:
    if known is None:
        return [_line(f"input: {{kind: images, uri: {otherwise}}}", "FILL IN: images, tar or parquet")]
    return [_line(f"input: {in_line(known.settings)}", known.about)]


def _score(found: Found, store: Store) -> str:
    lines = [
        "# Scores every image of an archive; the same command goes on where it was ended:",
        "#   gradosr score score.yaml",
        *_serving(found, store),
        _line("# workers: auto", "one per GPU, else one per core"),
        _line("# features: unknown", "stored of images over the threshold, by which an audit clusters them"),
        _line("# signals: unknown", "stored to learn from labels later (`gradosr learn`)"),
        _line("# max_bad_images: 0.01", "a share or a number; with more, a finished run exits with 5"),
    ]
    return "\n".join(lines) + "\n"


def _screen(found: Found, store: Store) -> str:
    lines = [
        "# Scores what is new in an archive, every night, and exits with 6 if somebody should look:",
        "#   gradosr screen screen.yaml",
        *_serving(found, store),
        _line("timezone: UTC", "of the nights' names"),
        "gates:",
        _line("  rate_increase: 0.02", "over the threshold: surely 2 points more than on earlier nights"),
        _line("  new_candidate_class: 100", "new images that look alike, and that earlier nights hardly had"),
        _line("  bad_images: 0.01", "a share of the new images, or a number"),
        _line("# webhook: {url: https://hooks.example.org/gradosr}", "told when a gate trips"),
    ]
    return "\n".join(lines) + "\n"


def _serving(found: Found, store: Store) -> Iterable[str]:
    manifest: Manifest | None = read_manifest(store, found.bundle)[0] if found.bundle else None
    about = "FILL IN: `gradosr fit` makes one" if manifest is None else f"{len(manifest.classes)} classes"
    yield _line(f"bundle: {in_line(found.bundle or 'bundle/')}", about)
    if manifest and manifest.arch.partition(":")[0] not in LIBRARIES:
        yield _line(f"trust: {in_line([manifest.arch])}", "code of your own that the bundle imports")
    yield from _input(next(iter(found.sources), None), "archive/")
    yield _line("output: results/", "a new folder")


def _line(text: str, comment: str) -> str:
    return f"{text:<{COMMENT}} # {printable(comment)}" if comment else text
