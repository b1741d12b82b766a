"""Scoring of images in this process: `gradosr.load(uri).score(images)`.

B images.
"""

import base64
import heapq
import html
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, overload

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from gradosr.archive.decode import rgb, to_input_size
from gradosr.archive.image import EncodedImage
from gradosr.archive.kinds import source_at
from gradosr.archive.loading import PreparedImage, decoding_threads, prepare
from gradosr.archive.readers import every_image
from gradosr.bundle.bundle import Bundle as SavedBundle
from gradosr.bundle.bundle import load_bundle
from gradosr.config import (
    MAX_PIXELS,
    ComputeSettings,
    DeviceName,
    ImagesInput,
    ParquetInput,
    Precision,
    S3Settings,
    TarInput,
    TransformSettings,
)
from gradosr.config.settings import validate_settings
from gradosr.results.part import schema
from gradosr.scoring.columns import score_images
from gradosr.scoring.scorer import Scorer
from gradosr.store import Store

if TYPE_CHECKING:
    import pandas as pd

ImageLike = Union[Image.Image, str, "os.PathLike[str]", bytes, NDArray[Any], Tensor]
"""An image: opened by Pillow, a path or URI, encoded bytes, or pixels [H, W, 3] (a tensor: [3, H, W])."""
SHOWN = 12
"""Images of the highest unknown scores whose pictures are kept to be shown."""
SIDE = 96
"""Longest side of a shown picture, in pixels."""
_LEFT_OUT = ("shard", "row", "source")
_SCHEMA = pa.schema([one for one in schema() if one.name not in _LEFT_OUT])
_INPUTS = {"tar": TarInput, "parquet": ParquetInput, "images": ImagesInput}


def load(
    uri: str,
    *,
    device: DeviceName = "auto",
    precision: Precision = "float32",
    batch_size: int = 64,
    trust: tuple[str, ...] = (),
    store: S3Settings | None = None,
) -> "Bundle":
    """Load a bundle, ready to score images in this process.

    Settings are those of a score config. Raises BundleError, ClassifierError, ConfigError or StoreError, each in one
    line.
    """
    reached = Store(store or S3Settings())
    settings = validate_settings(ComputeSettings, {"device": device, "precision": precision}, "gradosr.load")
    return Bundle(load_bundle(reached, uri, trust), settings, batch_size=batch_size, store=reached)


class Bundle:
    """A classifier with its unknown detector, ready to score images."""

    def __init__(
        self,
        saved: SavedBundle,
        settings: ComputeSettings | None = None,
        *,
        batch_size: int = 64,
        store: Store | None = None,
    ) -> None:
        """Put a bundle on a device; `gradosr.load` reads one first."""
        self._scorer = Scorer(saved, settings or ComputeSettings())
        self._batch_size, self._store = batch_size, store or Store()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the known classes."""
        return self._scorer.bundle.manifest.classes

    @property
    def false_alarm_rate(self) -> float:
        """The share of known images that may be called unknown."""
        return self._scorer.bundle.manifest.false_alarm_rate

    def __repr__(self) -> str:
        manifest = self._scorer.bundle.manifest
        shown = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
        return f"<gradosr.Bundle {manifest.arch}, {len(self.classes)} classes ({shown}), detector {manifest.detector}>"

    def score(self, images: "ImageLike | Iterable[ImageLike]") -> "Scored":
        """Score images of any size, one or many; a path may also be a folder, a pattern, or a tar or Parquet file.

        A file or bytes that cannot be decoded become a row with a status and the reason, as in a table of results.
        Raises TypeError or ValueError for what is no image, StoreError for a file that cannot be read.
        """
        tables, shown = [], list[tuple[float, int, Tensor]]()
        first, rest = 0, iter(self._prepared(images))
        while batch := list(islice(rest, self._batch_size)):
            rows = score_images(self._scorer, batch)
            tables.append(_whole(rows))
            for row, (image, score) in enumerate(zip(batch, tables[-1]["unknown_score"].to_pylist(), strict=True)):
                if image.pixels is not None and score is not None:
                    heapq.heappush(shown, (score, first + row, image.pixels))
                    if len(shown) > SHOWN:
                        heapq.heappop(shown)
            first += len(batch)
        table = pa.concat_tables(tables) if tables else _SCHEMA.empty_table()
        return Scored(table, {row: pixels for _, row, pixels in shown})

    def _prepared(self, images: "ImageLike | Iterable[ImageLike]") -> Iterator[PreparedImage]:
        transform, threads = self._scorer.bundle.manifest.transform, torch.get_num_threads()
        given: Iterator[ImageLike | EncodedImage] = iter([images] if _is_one(images) else images)  # type: ignore
        if isinstance(images, str | os.PathLike) and (found := self._found(os.fspath(images))) is not None:
            given = iter(found)
        with decoding_threads(threads) as pool:
            number = 0
            while ahead := list(islice(given, self._batch_size)):
                yield from pool.map(self._prepare, range(number, number + len(ahead)), ahead, repeat(transform))
                number += len(ahead)

    def _found(self, place: str) -> Iterator[EncodedImage] | None:
        """Return the images of a folder, a pattern or an archive; None for a single image."""
        archive = place.lower().endswith((*TarInput.suffixes, *ParquetInput.suffixes))
        if not archive and (Path(place).is_file() or ("://" in place and place.lower().endswith(ImagesInput.suffixes))):
            return None
        source = source_at(place, self._store)
        return every_image(_INPUTS[source["kind"]](**source), self._store)

    def _prepare(self, number: int, image: "ImageLike | EncodedImage", transform: TransformSettings) -> PreparedImage:
        if isinstance(image, EncodedImage):
            return prepare(image, transform, MAX_PIXELS)
        if isinstance(image, str | os.PathLike):
            place = os.fspath(image)
            return prepare(EncodedImage(place, self._store.read(place)), transform, MAX_PIXELS)
        if isinstance(image, bytes):
            return prepare(EncodedImage(str(number), image), transform, MAX_PIXELS)
        pixels = _pixels(image, number)
        bare = EncodedImage(str(number), b"")
        return PreparedImage(bare, pixels.shape[2], pixels.shape[1], to_input_size(pixels, transform), None)


def _is_one(images: Any) -> bool:
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, Image.Image | str | os.PathLike | bytes)


def _pixels(image: Any, number: int) -> Tensor:
    """Return pixels as uint8 [3, H, W]. Raises TypeError or ValueError for what is no image."""
    if isinstance(image, Image.Image):
        pixels = torch.from_numpy(rgb(ImageOps.exif_transpose(image) or image)).permute(2, 0, 1)
        return pixels.contiguous()
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
        pixels = pixels[None] if pixels.ndim == 2 else pixels
    elif isinstance(image, np.ndarray):
        pixels = torch.from_numpy(np.array(image))  # a copy: torch warns of arrays that are read-only
        pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    else:
        raise TypeError(f"image {number}: {type(image).__name__} is no image, path, bytes, array or tensor")
    form = "[height, width, 3]" if isinstance(image, np.ndarray) else "[3, height, width]"
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4) or not pixels.numel():
        raise ValueError(f"image {number}: shape {list(image.shape)}; expected {form}, or grey or with alpha")
    if pixels.is_floating_point():
        if not (pixels.min() >= 0 and pixels.max() <= 1):
            raise ValueError(f"image {number}: values beyond 0..1; give pixels as they are before they are normalised")
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"image {number}: {pixels.dtype}; expected uint8, or floating-point values in 0..1")
    return pixels.expand(3, -1, -1).contiguous() if pixels.shape[0] == 1 else pixels[:3].contiguous()


def _whole(rows: pa.RecordBatch) -> pa.Table:
    """Return rows with every column; one that is absent where no image has pixels is all null."""
    columns = {
        one.name: rows[one.name] if one.name in rows.schema.names else pa.nulls(rows.num_rows, one.type)
        for one in _SCHEMA
    }
    return pa.table(columns, schema=_SCHEMA)


class Scored(Sequence[dict[str, Any]]):
    """Images that were scored, one row each and in order, with the columns of a table of results."""

    def __init__(self, table: pa.Table, pixels: dict[int, Tensor] | None = None) -> None:
        """Wrap a table; `pixels` are those of some images, by row, to be shown in a notebook."""
        self._table, self._pixels = table, pixels or {}

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> "Scored": ...
    def __getitem__(self, place: int | slice) -> "dict[str, Any] | Scored":
        """Return the row at a place as a dictionary, or the rows of a slice."""
        places = range(len(self))[place]
        if isinstance(places, int):
            row: dict[str, Any] = self._table.slice(places, 1).to_pylist()[0]
            return row
        pixels = {new: self._pixels[old] for new, old in enumerate(places) if old in self._pixels}
        return Scored(self._table.take(pa.array(places, pa.int64())), pixels)

    def to_arrow(self) -> pa.Table:
        """Return the rows as a table of Arrow."""
        return self._table

    def to_pandas(self) -> "pd.DataFrame":
        """Return the rows as a data frame of pandas, which must be installed."""
        frame: pd.DataFrame = self._table.to_pandas()
        return frame

    def __repr__(self) -> str:
        return f"<gradosr.Scored {self._summary()}>"

    def _summary(self) -> str:
        statuses, unknown = self._table["status"].to_pylist(), self._table["is_unknown"].to_pylist()
        bad = sum(status != "ok" for status in statuses)
        told = f", {bad:,} without a score" if bad else ""
        return f"{len(self):,} image{'' if len(self) == 1 else 's'}, {sum(map(bool, unknown)):,} unknown{told}"

    def _repr_html_(self) -> str:
        """Return the images of the highest unknown scores as HTML, with their pictures."""
        rows = sorted(self._pixels, key=lambda row: -self[row]["unknown_score"])
        cells = "".join(f"<tr>{_cells(self[row], self._pixels[row])}</tr>" for row in rows)
        head = "<tr><th></th><th>key</th><th>called</th><th>unknown score</th><th>p-value</th></tr>"
        return f"<p>{html.escape(self._summary())}; the highest scores:</p><table>{head}{cells}</table>"


def _cells(row: dict[str, Any], pixels: Tensor) -> str:
    picture, body = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(body, "JPEG", quality=80)
    source = f"data:image/jpeg;base64,{base64.b64encode(body.getvalue()).decode()}"
    words = (row["key"], row["open_set_class"], f"{row['unknown_score']:.3f}", f"{row['p_value']:.3g}")
    return f'<td><img src="{source}" alt=""></td>' + "".join(f"<td>{html.escape(str(word))}</td>" for word in words)
