"""Where images come from."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from gradosr.config.settings import Settings
from gradosr.config.uris import Uri

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs


class LabelNames(Settings):
    """Shared by the input kinds: where integer labels get their names."""

    label_names: Uri | tuple[str, ...] | None = None
    """Names of integer labels, in order: a list, or the URI of a JSON list."""


class ParquetInput(LabelNames):
    """Images in Parquet files, one shard per file."""

    kind: Literal["parquet"] = "parquet"
    uri: Uri
    """Folder, prefix, glob or brace range of .parquet files."""
    image_column: str = "image"
    """Column of encoded images: binary, or Hugging Face's struct<bytes, path>."""
    label_column: str | None = None
    """Column of labels: strings, or integers into label_names."""


class TarInput(LabelNames):
    """Images in WebDataset tar files, one shard per file; `KEY.cls` holds a label name or an index into label_names."""

    kind: Literal["tar"] = "tar"
    uri: Uri
    """Folder, prefix, glob or brace range of .tar, .tar.gz or .tgz files."""


class ImagesInput(LabelNames):
    """Single image files, recorded in groups that are one shard each; the folder an image lies in is its label."""

    kind: Literal["images"] = "images"
    uri: Uri
    """Folder, prefix, glob or brace range of image files."""
    group_size: PositiveInt = 1000
    """Images per group; a group once recorded keeps its images."""


Input = Annotated[ParquetInput | TarInput | ImagesInput, Field(discriminator="kind")]
