"""Settings for packing images into tar shards."""

from collections.abc import Sequence

from pydantic import PositiveInt

from gradosr.config.inputs import Input
from gradosr.config.settings import as_yaml, load_settings
from gradosr.config.store import StoreFields
from gradosr.config.uris import Uri


class PackJob(StoreFields):
    """Pack images into WebDataset tar shards."""

    input: Input
    output: Uri
    """Folder or prefix to write the shards to."""
    images_per_shard: PositiveInt = 1000


def pack_job(source: str, target: str, overrides: Sequence[str] = ()) -> PackJob:
    """Return the job for two URIs and overrides; the input kind is images unless overridden."""
    document = as_yaml({"input": {"kind": "images", "uri": source}, "output": target})
    return load_settings(PackJob, document, "pack", overrides)
