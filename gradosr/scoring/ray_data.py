"""Scoring in a Ray Data pipeline of your own, without gradosr's driver.

`map_batches` takes any callable class, so nothing here imports Ray.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from gradosr.archive.decode import to_input_size
from gradosr.archive.image import EMPTY, MAX_ENCODED, EncodedImage, Fault, too_large
from gradosr.archive.loading import PreparedImage, decoding_threads, prepare
from gradosr.bundle.bundle import load_bundle
from gradosr.config import MAX_PIXELS, ComputeSettings, DeviceName, Precision, S3Settings, TransformSettings
from gradosr.config.settings import validate_settings
from gradosr.errors import ConfigError
from gradosr.results.part import schema
from gradosr.scoring.columns import score_images
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store

_PLACE = ("key", "source", "shard", "row", "label")  # position in an archive; here the input has its own columns for it
_COLUMNS = {field.name: field.type for field in schema() if field.name not in _PLACE}
_SOURCE = {"source": schema().field("source").type}

Batch = dict[str, NDArray[Any]]


class BatchScorer:
    """A callable that scores batches of a `ray.data.Dataset`, one instance per actor of the pool.

        dataset.map_batches(BatchScorer, fn_constructor_args=("s3://models/animals-v3/",), batch_format="pyarrow",
                            concurrency=4, num_gpus=1)

    Images are encoded bytes, Hugging Face's struct of bytes and path, or decoded uint8 arrays [height, width, 3]. The
    columns of a part from `status` on replace the image column; the path in a struct is kept as `source`. An image that
    cannot be scored becomes a row with a status and the reason. Batches are tables of Arrow, whose columns keep the
    types of a part, or, by Ray's default, dictionaries of numpy arrays. Those have None for null, and numpy has no type
    for a column of nothing else.
    """

    def __init__(
        self,
        bundle: str,
        image_column: str = "image",
        device: DeviceName = "auto",
        precision: Precision = "float32",
        *,
        max_memory: float | None = None,
        max_pixels: int = MAX_PIXELS,
        threads: int | None = None,
        trust: tuple[str, ...] = (),
        store: S3Settings | None = None,
    ) -> None:
        """Load a bundle with settings as in ScoreJob.

        `threads` is the number of threads that decode and, without a GPU, compute; None leaves it to torch. Raises
        BundleError, ClassifierError, ConfigError or StoreError, each in one line.
        """
        document = {"device": device, "precision": precision, "max_memory": max_memory}
        settings = validate_settings(ComputeSettings, document, "BatchScorer")
        if threads is not None:
            torch.set_num_threads(threads)
        self._column, self._max_pixels = image_column, max_pixels
        self._scorer = Scorer(load_bundle(Store(store or S3Settings()), bundle, trust), settings)
        self._pool = decoding_threads(threads or torch.get_num_threads())

    def __call__(self, batch: Any) -> Any:
        """Return the batch's other columns and the scores. Raises ConfigError for columns that do not fit."""
        if isinstance(batch, pa.Table):
            self._check(batch.column_names)
            others = batch.drop_columns([self._column])
            names = others.column_names
            scores = self._scores(batch[self._column].to_pylist())
            return pa.table([*others.columns, *scores.values()], names=[*names, *scores])
        self._check(batch)
        found = {name: values for name, values in batch.items() if name != self._column}
        return found | {name: _as_numpy(values) for name, values in self._scores(batch[self._column]).items()}

    def _check(self, columns: Collection[str]) -> None:
        if self._column not in columns:
            raise ConfigError(f"no column {self._column!r} (columns: {', '.join(columns)}); set image_column")
        if taken := sorted(({*columns} - {self._column}) & {*_COLUMNS, *_SOURCE}):
            raise ConfigError(
                f"the scores use the column names {', '.join(taken)}; rename yours with Dataset.rename_columns first"
            )

    def _scores(self, images: Iterable[Any]) -> dict[str, pa.Array]:
        """Score images; return columns as in a part. One that is absent where no image has pixels is all null."""
        images = list(images)
        rows = score_images(self._scorer, list(self._pool.map(self._prepared, images)))
        types = (_SOURCE if any(isinstance(image, Mapping) for image in images) else {}) | _COLUMNS
        return {
            name: rows[name] if name in rows.schema.names else pa.nulls(rows.num_rows, kind)
            for name, kind in types.items()
        }

    def _prepared(self, image: Any) -> PreparedImage:
        transform = self._scorer.bundle.manifest.transform
        if isinstance(image, np.ndarray):
            return _resized(image, transform)
        path = None
        if isinstance(image, Mapping):
            image, path = image.get("bytes"), image.get("path")
        return prepare(_encoded(image, path), transform, self._max_pixels)


def _encoded(data: Any, path: str | None) -> EncodedImage:
    fault: Fault | None = None
    if data is None or data == b"":
        fault = EMPTY
    elif not isinstance(data, bytes):
        fault = Fault("unsupported", f"{type(data).__name__}: neither encoded bytes nor an array of uint8")
    elif len(data) > MAX_ENCODED:
        fault = too_large(len(data))
    return EncodedImage("", b"" if fault else data, source=path, fault=fault)


def _resized(pixels_HWC: NDArray[Any], transform: TransformSettings) -> PreparedImage:
    bare, shape = EncodedImage("", b""), pixels_HWC.shape
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or shape[2] != 3:
        found = f"an array of {pixels_HWC.dtype} {list(shape)}"
        fault = Fault("unsupported", f"{found}; expected uint8 [height, width, 3]")
        return PreparedImage(bare, None, None, None, fault)
    if not pixels_HWC.size:
        return PreparedImage(bare, shape[1], shape[0], None, EMPTY)
    pixels = torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1)  # Ray's arrays are read-only, about which torch warns
    return PreparedImage(bare, shape[1], shape[0], to_input_size(pixels, transform), None)


def _as_numpy(column: pa.Array) -> NDArray[Any]:
    """Return a column in its type; if it holds nulls, as objects with None, which Arrow reads as the same type."""
    kind, values = column.type.to_pandas_dtype(), column.to_pylist()
    if not column.null_count:
        return np.array(values, kind)
    return np.array([value if value is None else kind(value) for value in values], object)
