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
    """Base of all input kinds.

    A URI may be a pattern: * ? [abc] [!abc] within a folder, ** across folders, {00..99} and {a,b}. Where a file or a
    folder exists by these very letters, such as a folder called run[1], it is meant and not the pattern; [*], [?], [[]
    and [{] match these four letters themselves.
    """

    suffixes: ClassVar[tuple[str, ...]]
    """Endings of the file names that belong to the kind, in lower case. Not a setting: each kind states its own."""
    hides: ClassVar[tuple[str, ...]] = ("_", ".")
    """Beginnings of names of files and folders that are left out unless the URI names them: by the convention of Spark
    and Parquet those are no data (_SUCCESS, _temporary, .crc). They are counted."""

    kind: str
    uri: Uri


class ParquetInput(InputSettings):
    """Images in Parquet files, one shard per file."""

    suffixes = (".parquet",)

    kind: Literal["parquet"] = "parquet"
    """Kind of input: Parquet files with encoded images."""
    uri: Uri
    """Folder, prefix, glob or brace range of .parquet files."""
    image_column: str = "image"
    """Column of encoded images: binary, or Hugging Face's struct<bytes, path>."""
    label_column: str | None = None
    """Column of labels: strings, or integers that index label_names."""


class TarInput(InputSettings):
    """Images in WebDataset tar files, one shard per file; `KEY.cls` holds a label or an index into label_names."""

    suffixes = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")

    kind: Literal["tar"] = "tar"
    """Kind of input: tar files as WebDataset has them."""
    uri: Uri
    """Folder, prefix, glob or brace range of .tar files, which may be compressed: .tar.gz, .tar.bz2, .tar.xz, .tar.zst
    (.tgz, .tbz2, .txz, .tzst)."""


class ImagesInput(InputSettings):
    """Single image files, recorded in groups of one shard each; an image's folder is its label.

    No name is hidden: cameras write _MG_1234.JPG. Only what macOS keeps beside files (._A.JPG, __MACOSX/) is left out.
    """

    suffixes = (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".jp2", ".j2k", ".avif", ".heic", ".heif"),
    )
    hides = ()

    kind: Literal["images"] = "images"
    """Kind of input: image files."""
    uri: Uri
    """Folder, prefix, glob or brace range of image files."""
    group_size: PositiveInt = 1000
    """Images per group; a recorded group never changes its images."""


class ResultsInput(InputSettings):
    """The signals in a finished run's table, which are scored again; no image is read."""

    suffixes = (".parquet",)

    kind: Literal["results"] = "results"
    """Kind of input: the results of another run."""
    uri: Uri
    """Results folder of a run with `signals: all`."""
    label_names: None = None
    """Not used: the labels in the table are names."""


Input = Annotated[ParquetInput | TarInput | ImagesInput, Field(discriminator="kind")]
ScoreInput = Annotated[ParquetInput | TarInput | ImagesInput | ResultsInput, Field(discriminator="kind")]
