"""Settings of image inputs."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from gradosr.config.settings import Settings
from gradosr.config.uris import Uri

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs


class LabelNames(Settings):
    """Names of integer labels; shared by all kinds of input."""

    label_names: Uri | tuple[str, ...] | None = None
    """Names of integer labels, in order: a list, or the URI of a JSON list."""


class InputSettings(LabelNames):
    """Base of all input kinds."""

    suffixes: ClassVar[tuple[str, ...]]
    """Endings of the file names that belong to the kind, in lower case. Not a setting: each kind states its own."""
    hidden: ClassVar[tuple[str, ...]] = ("_", ".")
    """Beginnings of names of files and folders that do not belong to the archive, unless a file is named in full.

    Both are conventions of data sets for what is not data, such as _SUCCESS and .git.
    """

    kind: str
    uri: Uri


class ParquetInput(InputSettings):
    """Images in Parquet files, one shard per file."""

    suffixes = (".parquet",)

    kind: Literal["parquet"] = "parquet"
    uri: Uri
    """Folder, prefix, glob or brace range of .parquet files."""
    image_column: str = "image"
    """Column of encoded images: binary, or Hugging Face's struct<bytes, path>."""
    label_column: str | None = None
    """Column of labels: strings, or integers that index label_names."""


class TarInput(InputSettings):
    """Images in WebDataset tar files, one shard per file; `KEY.cls` holds a label or an index into label_names."""

    suffixes = (".tar", ".tar.gz", ".tgz")

    kind: Literal["tar"] = "tar"
    uri: Uri
    """Folder, prefix, glob or brace range of .tar, .tar.gz or .tgz files."""


class ImagesInput(InputSettings):
    """Single image files, recorded in groups of one shard each; an image's folder is its label."""

    suffixes = (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".jp2", ".j2k", ".avif", ".heic", ".heif"),
    )
    hidden = (".",)  # cameras write _MG_1234.JPG

    kind: Literal["images"] = "images"
    uri: Uri
    """Folder, prefix, glob or brace range of image files."""
    group_size: PositiveInt = 1000
    """Images per group; a recorded group never changes its images."""


Input = Annotated[ParquetInput | TarInput | ImagesInput, Field(discriminator="kind")]
