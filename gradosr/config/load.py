"""Loading of a job from a YAML file."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict

from gradosr.config.compute import Serving
from gradosr.config.fit import FitJob
from gradosr.config.score import ScoreJob
from gradosr.config.screening import ScreenJob
from gradosr.config.settings import Settings, SettingsT, as_yaml, load_settings
from gradosr.errors import ConfigError


class _Sections(Settings):
    """A job of any kind, of which only the keys are read."""

    model_config = ConfigDict(extra="allow")


def load_job(model: type[SettingsT], path: str, overrides: Sequence[str] = ()) -> SettingsT:
    """Load the job in a YAML file. Raise ConfigError with every fault, one per line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    return load_settings(model, text, path, overrides)


def check_job(target: str, overrides: Sequence[str] = ()) -> FitJob | Serving:
    """Load the job in a YAML file, whose sections determine its kind, or only a bundle, given by its URI.

    Raise ConfigError with every fault, one per line.
    """
    if not target.endswith((".yaml", ".yml")):
        return load_settings(Serving, as_yaml({"bundle": target}), target, overrides)
    keys = load_job(_Sections, target).model_extra or {}
    if keys.keys() & (FitJob.model_fields.keys() - ScoreJob.model_fields.keys()):
        return load_job(FitJob, target, overrides)
    screening = keys.keys() & (ScreenJob.model_fields.keys() - ScoreJob.model_fields.keys())
    return load_job(ScreenJob if screening else ScoreJob, target, overrides)
