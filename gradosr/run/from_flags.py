"""A score job from the arguments and flags of `gradosr score`, with a config file or without."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradosr.archive.kinds import source_at, store_of
from gradosr.config import ScoreJob, is_config, load_job
from gradosr.errors import ConfigError


def score_job(target: str, images: str | None, flags: Mapping[str, Any], overrides: Sequence[str]) -> ScoreJob:
    """Return the job of a config `target`, or of a bundle and the images that it is to score.

    Flags are values by key; None is one that was not given. Raises ConfigError or InputError.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    if is_config(target):
        if images is not None:
            raise ConfigError(f"{target}: a config says what it scores; change that with --set input.uri={images}")
        return load_job(ScoreJob, target, overrides, given)
    if images is None or "output" not in given:
        lacking = [name for name, there in (("IMAGES", images), ("--out", given.get("output"))) if there is None]
        raise ConfigError(
            f"{target}: no config file, and as a bundle it needs {' and '.join(lacking)}: "
            "gradosr score CONFIG, or gradosr score BUNDLE IMAGES --out RESULTS"
        )
    document = {"bundle": target, "input": source_at(images, store_of(overrides)), **given}
    return load_job(ScoreJob, None, overrides, document)
