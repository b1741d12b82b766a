"""A lack of the machine while it decodes or reads is never written into the table as the image's fault."""

import gzip
import io
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hostile import encoded, jpeg, parquet_file, png, tar
from little_memory import in_little_memory
from PIL import Image

from gradosr.archive.decode import decode
from gradosr.archive.image import EncodedImage
from gradosr.archive.loading import prepare
from gradosr.archive.readers import READERS
from gradosr.archive.shards import Shard, list_shards
from gradosr.config import MAX_PIXELS, Input, ParquetInput, TarInput, TransformSettings
from gradosr.errors import MachineFault, machine_fault
from gradosr.store import Store, StoredObject

MEGABYTE = 2**20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")


def fault_of(data: bytes) -> str:
    fault = decode(data, MAX_PIXELS).fault
    return "" if fault is None else f"a row: {fault}"


def fault_of_preparing(data: bytes, transform: TransformSettings) -> str:
    return str(prepare(EncodedImage("a#b", data), transform, MAX_PIXELS).fault)


FORMATS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("JPEG", "RGB", {}),
    "progressive": ("JPEG", "RGB", {"progressive": True}),
    "cmyk": ("JPEG", "CMYK", {}),
    "png": ("PNG", "RGB", {"compress_level": 1}),
    "grey16": ("PNG", "I;16", {"compress_level": 1}),
    "gif": ("GIF", "L", {}),
    "webp": ("WEBP", "RGB", {"quality": 1, "method": 0}),
    "webp-lossless": ("WEBP", "RGB", {"lossless": True, "quality": 0, "method": 0}),
    "tiff": ("TIFF", "RGB", {}),
    "deflate": ("TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    "ppm": ("PPM", "RGB", {}),
    "bmp": ("BMP", "RGB", {}),
    "jp2": ("JPEG2000", "L", {"irreversible": True}),
    "avif": ("AVIF", "RGB", {"quality": 1, "speed": 10}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_an_image_that_memory_is_too_small_for_is_no_bad_image(name: str) -> None:
    kind, mode, options = FORMATS[name]
    side = 6000 if kind == "JPEG" else 3000  # more than what happens to be free in the heap
    data = encoded(Image.new(mode, (side, side)), kind, **options)
    answers = [in_little_memory(fault_of, spare * MEGABYTE, data) for spare in (1, 20, 45)]
    assert [answer for answer in answers if answer and not answer.startswith("MachineFault: ")] == []
    assert answers[0], "or this test shows nothing"


@pytest.mark.slow
def test_torchs_want_of_memory_is_told_with_the_image() -> None:
    huge = TransformSettings(resize=(60_000, 60_000))
    answer = in_little_memory(fault_of_preparing, MEGABYTE, png(8, 8), huge)
    assert answer.startswith("MachineFault: a#b: this machine"), answer
    assert "\n" not in answer


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        pa.ArrowMemoryError("malloc of size 64 failed"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: 64 bytes"),
        RuntimeError("can't start new thread"),
        RuntimeError("Insufficient memory (case 4)"),
        OSError(12, "Cannot allocate memory"),
        OSError(24, "Too many open files"),
        OSError(28, "No space left on device"),
    ],
)
@pytest.mark.parametrize("kind", ["s.tar", "s.tar.gz", "s.parquet"])
def test_a_fault_of_the_machine_at_any_read_is_not_the_archives(kind: str, error: Exception, tmp_path: Path) -> None:
    assert machine_fault(error) is not None
    members = [(f"{number}.png", png(number + 1, 9)) for number in range(5)]
    data = parquet_file({"image": [image for _, image in members]}) if kind.endswith("parquet") else tar(members)
    (tmp_path / kind).write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    source: Input = (ParquetInput if kind.endswith("parquet") else TarInput)(uri=f"{tmp_path}/{kind}")
    (shard,) = list_shards(source, Store())
    for reads in range(200):
        store = FaultyStore(error, reads)
        if (rows := read(shard, store, source)) is not None:
            assert [row.data for row in rows] == [image for _, image in members]
            assert reads > 2
            return
    raise AssertionError("every read failed")


def read(shard: Shard, store: Store, source: Input) -> list[EncodedImage] | None:
    try:
        return list(READERS[source.kind].read(shard, store, source, None))
    except MachineFault:
        return None


class FaultyStore(Store):
    """The local store on a machine that lacks something at the read with this number."""

    def __init__(self, error: Exception, reads: int) -> None:
        super().__init__()
        self.error, self.reads = error, reads

    def open(self, stored: StoredObject) -> "FaultyFile":  # type: ignore[override]
        with super().open(stored) as file:
            return FaultyFile(file.read(), self)


class FaultyFile(io.BytesIO):
    def __init__(self, data: bytes, store: FaultyStore) -> None:
        super().__init__(data)
        self.store = store

    def read(self, size: int | None = -1) -> bytes:
        self.store.reads -= 1
        if self.store.reads < 0:
            raise self.store.error
        return super().read(size)

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]  # what gzip and BufferedReader call
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def test_a_bad_image_is_no_fault_of_the_machine() -> None:
    for error in (ValueError("x"), OSError("broken data stream"), SyntaxError(), RuntimeError("Not a JPEG file")):
        assert machine_fault(error) is None
    assert decode(jpeg()[:100], MAX_PIXELS).fault is not None


def test_a_panic_of_rust_for_want_of_memory_is_a_fault_of_the_machine() -> None:
    panic = type("PanicException", (BaseException,), {})  # pyo3 makes the type when it raises it
    assert machine_fault(panic("PyObject pointer is null")) is not None  # as safetensors says
    assert machine_fault(panic("index out of bounds")) is None


def test_the_reason_names_no_second_line() -> None:
    assert "\n" not in str(machine_fault(RuntimeError("can't allocate memory\nat line 3")))
