"""A fit job from the flags of `gradosr fit`, with a config file or without."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradosr.archive.kinds import class_folders, source_at, store_of
from gradosr.config import FOLDER, FitJob, load_job
from gradosr.text import printable

SHOWN = 10
"""Most classes that are named."""
ALL = 1.0
"""Share held out when there is no config: images named beside weights are images that the classifier has not seen."""


def fit_job(
    config: str | None, flags: Mapping[str, Any], overrides: Sequence[str], say: Callable[[str], object]
) -> FitJob:
    """Return the job of a config and flags: arch, weights, classes, images, held_out, bundle; None for not given.

    Without a config, the kind of the images is found by looking, the folders of images are the classes unless they are
    named, and no image is kept for training. Raises ConfigError or InputError.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    places = {name: f"classifier.{name}" for name in ("arch", "weights", "classes")}
    document = {places.get(name, name): value for name, value in given.items() if name != "images"}
    if config is not None:
        document |= {"input.uri": given["images"]} if "images" in given else {}
        return load_job(FitJob, config, overrides, document)
    if "images" in given:
        store = store_of(overrides)
        source = source_at(given["images"], store)
        if not any(one.startswith("train") for one in overrides):
            document = {"held_out": ALL} | document
        document["input"] = source
        named = "classes" in given or given.get("arch", "").startswith(FOLDER)
        folders = () if named or source["kind"] != "images" else class_folders(source["uri"], store)
        if folders and not any(one.startswith(("classifier.classes", "known")) for one in overrides):
            shown = ", ".join(folders[:SHOWN]) + (f" and {len(folders) - SHOWN} more" if len(folders) > SHOWN else "")
            say(printable(f"classes: {shown}: the folders of {given['images']}, in the order of their names"))
            document["classifier.classes"] = folders
    return load_job(FitJob, None, overrides, document)
