import hashlib
import os
from collections import Counter

import pytest
from hostile import png

from gradosr.archive.shards import Shard, list_shards, locate, means, objects_of
from gradosr.config import ImagesInput, ParquetInput, TarInput
from gradosr.errors import InputError, NotFound
from gradosr.store import Store


@pytest.fixture
def store():
    return Store()


def fill(folder, *names, data=b"x"):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def names(uri, store, kind=TarInput):
    return [shard.name for shard in list_shards(kind(uri=str(uri)), store)]


def test_a_folder_gives_its_shards_sorted_each_with_its_version(tmp_path, store):
    fill(tmp_path, "b.tar", "a/2.tgz", "a/1.TAR.GZ", "c.parquet", "readme.txt", data=b"four")
    shards = list_shards(TarInput(uri=str(tmp_path)), store)
    assert [shard.name for shard in shards] == ["a/1.TAR.GZ", "a/2.tgz", "b.tar"]
    assert shards == list_shards(TarInput(uri=f"{tmp_path}/"), store)
    last = shards[-1]
    assert (last.uri, last.size, last.piece) == (f"{tmp_path}/b.tar", 4, "")
    assert last.stored == store.stat(last.uri)
    assert names(tmp_path, store, ParquetInput) == ["c.parquet"]


def test_an_empty_object_of_the_folders_own_name_hides_no_shard(store):
    """Tools mark a folder of an object store by an empty object, with or without a slash: apache/arrow issue 24093."""
    for name, body in (("shards", b""), ("shards/0.tar", b"x")):
        store.write(f"memory://marked/{name}", body)
    for uri in ("memory://marked/shards", "memory://marked/shards/", "memory://marked/shards/*.tar"):
        assert names(uri, store) == ["0.tar"]


@pytest.mark.parametrize("kind", [TarInput, ParquetInput])
def test_hidden_names_are_no_shards_unless_they_are_named(tmp_path, store, kind):
    end = kind.suffixes[0]
    fill(tmp_path, *(name + end for name in ("a", "_b", ".c", "_old/d", "x/.git/e", "x/f_", "._a")))
    counts = Counter()
    shards = list_shards(kind(uri=str(tmp_path)), store, counts)
    assert [shard.name for shard in shards] == [f"a{end}", f"x/f_{end}"]
    assert counts == {"hidden": 4, "AppleDouble": 1}
    for uri, expected in (
        ("_old", ["d"]),
        ("_b" + end, ["_b"]),
        ("._a" + end, ["._a"]),
        ("_*", ["_b"]),
        ("{_,x/f_,.}*" + end, [".c", "_b", "x/f_"]),
        ("[_a]*", ["a"]),
    ):
        assert names(tmp_path / uri, store, kind) == [name + end for name in expected], uri
    (named,) = list_shards(kind(uri=f"{tmp_path}/_b{end}"), store)
    assert locate(kind(uri=f"{tmp_path}/_b{end}"), named.name, store) == named.stored


def test_no_image_is_hidden_by_its_name(tmp_path, store):
    """Cameras set to Adobe RGB write _MG_1234.JPG; what is AppleDouble is no image, unless it is named outright."""
    photos = [".h.png", "@eaDir/t.jpg", "_MG_1.JPG", "_selects/b.jpg", "a.jpg"]
    fill(tmp_path, *photos, "._a.jpg", "__MACOSX/a.jpg", "__MACOSX/x/._a.jpg", ".AppleDouble/a.jpg", data=png())
    fill(tmp_path, "notes.txt", "Thumbs.DB", ".DS_Store", "LICENSE", "a.tar.lz4", "b.JSON", "x.ünï")
    counts = Counter()
    source = ImagesInput(uri=str(tmp_path))
    _, found = objects_of(source, store, counts)
    assert [name for name, _ in found] == photos
    assert counts == {"AppleDouble": 4, "without ending": 3, "txt": 1, "db": 1, "tar.lz4": 1, "json": 1}
    assert [locate(source, name, store).uri for name in photos] == [f"{tmp_path}/{name}" for name in photos]
    with pytest.raises(NotFound):
        locate(source, "._a.jpg", store)
    _, named = objects_of(ImagesInput(uri=f"{tmp_path}/._a.jpg"), store, None)
    assert [name for name, _ in named] == ["._a.jpg"]


def test_kinds_without_end_are_counted_up_to_a_bound(tmp_path, store):
    fill(tmp_path, "a.tar", *(f"x.e{number}" for number in range(100)))
    counts = Counter()
    list_shards(TarInput(uri=str(tmp_path)), store, counts)
    assert (len(counts), counts.total(), counts["of other kinds"]) == (41, 100, 60)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("run[1]", ["a.tar", "x/b.tar"]),
        ("run[1]/", ["a.tar", "x/b.tar"]),
        ("run[1]/*.tar", ["a.tar"]),
        ("run[1]/?/b*", ["x/b.tar"]),
        ("run[1]/x", ["b.tar"]),
        ("run[1]/x/b.tar", ["b.tar"]),
        ("run[2]/", ["run2/a.tar"]),
        ("run[[]1]/a*", ["run[1]/a.tar"]),
        ("run[[]1]*/", ["run[1]/a.tar", "run[1]/x/b.tar"]),
        ("run[12]/*.tar", ["run1/a.tar", "run2/a.tar"]),
        ("shot-{1}?*.tar", ["shot-{1}?*.tar"]),
        ("shot-[{]1}[?][*].tar", ["shot-{1}?*.tar"]),
        ("shot-*.tar", ["shot-1zz.tar", "shot-{1}?*.tar"]),
        ("shot-{1..3}zz.tar", ["shot-1zz.tar"]),
    ],
)
@pytest.mark.parametrize("place", ["local", "memory"])
def test_what_exists_by_its_letters_is_no_pattern(tmp_path, store, place, uri, expected):
    there = ["run[1]/a.tar", "run[1]/x/b.tar", "run1/a.tar", "run2/a.tar", "shot-{1}?*.tar", "shot-1zz.tar"]
    base = str(tmp_path) if place == "local" else f"memory://{tmp_path.name}"
    for name in there:
        store.write(f"{base}/{name}", b"x")
    found = list_shards(source := TarInput(uri=f"{base}/{uri}"), store)
    assert [shard.name for shard in found] == expected
    for shard in found:
        assert locate(source, shard.name, store) == shard.stored
        assert means(source, shard.uri, store)
    # A folder that is meant by its letters has no part of the one that the pattern would match.
    assert means(source, f"{base}/run1/a.tar", store) == any(shard.uri.endswith("run1/a.tar") for shard in found)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.tar", ["a-1.tar", "a-2.tar", "b-1.tar"]),
        ("a-?.tar", ["a-1.tar", "a-2.tar"]),
        ("[!a]-*.tar", ["b-1.tar"]),
        ("[a-c]-1.tar", ["a-1.tar", "b-1.tar"]),
        ("**/*.tar", ["a-1.tar", "a-2.tar", "b-1.tar", "x/a-1.tar", "x/y/a-1.tar"]),
        ("*/a-1.tar", ["x/a-1.tar"]),
        ("**", ["a-1.tar", "a-2.tar", "b-1.tar", "x/a-1.tar", "x/y/a-1.tar"]),
        ("{x,y}/**/a-1.tar", ["x/a-1.tar", "x/y/a-1.tar"]),
        ("{a,b}-{1,9}.tar", ["a-1.tar", "b-1.tar"]),
        ("{a-1,a-*,[a]-1}.tar", ["a-1.tar", "a-2.tar"]),  # overlapping: each once
        ("?/", ["x/a-1.tar", "x/y/a-1.tar"]),
        ("a*", ["a-1.tar", "a-2.tar"]),
    ],
)
def test_patterns(tmp_path, store, pattern, expected):
    fill(tmp_path, "a-1.tar", "a-2.tar", "b-1.tar", "x/a-1.tar", "x/y/a-1.tar", "a-1.txt")
    assert names(f"{tmp_path}/{pattern}", store) == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("s-{000..010}.tar", ["s-000.tar", "s-009.tar", "s-010.tar"]),
        ("s-{009..020}.tar", ["s-009.tar", "s-010.tar", "s-011.tar"]),
        ("s-{8..11}.tar", ["s-11.tar", "s-9.tar"]),
        ("s-{11..8}.tar", ["s-11.tar", "s-9.tar"]),
        ("s-{0..99999999}{0,1}.tar", ["s-11.tar"]),
        ("s-{s-,}{9..9}.tar", ["s-9.tar"]),
    ],
)
def test_brace_ranges_count_in_numbers_of_their_width(tmp_path, store, pattern, expected):
    fill(tmp_path, "s-000.tar", "s-009.tar", "s-010.tar", "s-011.tar", "s-9.tar", "s-11.tar", "s-.tar")
    assert names(f"{tmp_path}/{pattern}", store) == expected


def test_names_are_relative_to_the_last_folder_before_the_first_wildcard(tmp_path, store):
    fill(tmp_path, "train/a/1.tar", "train-2/a/2.tar")
    assert names(f"{tmp_path}/train*/a/*.tar", store) == ["train-2/a/2.tar", "train/a/1.tar"]
    assert names(f"{tmp_path}/train/?/1.tar", store) == ["a/1.tar"]
    assert names(f"{tmp_path}/train", store) == ["a/1.tar"]  # a folder, not every name that begins so


def test_one_object_is_an_archive_of_one_shard(tmp_path, store):
    fill(tmp_path, "a/1.tar", "a/2.tar", "a/folder.tar/3.tar")
    assert names(tmp_path / "a/1.tar", store) == ["1.tar"]
    assert names(tmp_path / "a/folder.tar", store) == ["3.tar"]


def test_relative_paths_name_what_lies_there(tmp_path, store, monkeypatch):
    fill(tmp_path, "a/1.tar")
    monkeypatch.chdir(tmp_path)
    for uri, expected in [("a", "1.tar"), (".", "a/1.tar"), ("*/1.tar", "a/1.tar"), ("a/1.tar", "1.tar")]:
        assert names(uri, store) == [expected]


def test_nothing_found_says_what_is_there_and_what_to_do(tmp_path, store):
    fill(tmp_path, "a.zip", "b.zip", "_c.tar")
    with pytest.raises(InputError) as caught:
        list_shards(TarInput(uri=f"{tmp_path}/"), store)
    assert str(caught.value) == (
        f"{tmp_path}/: no .tar, .tar.gz, .tgz, .tar.bz2, .tbz2, .tar.xz, .txz, .tar.zst, .tzst files there "
        "(3 other objects: 2 zip, 1 hidden); "
        "names that begin with _ or . are hidden until the URI names them; "
        "name the folder that holds them, or a pattern such as FOLDER/train-*.tar"
    )
    with pytest.raises(NotFound):
        list_shards(TarInput(uri=f"{tmp_path}/nowhere"), store)
    with pytest.raises(InputError, match=r"\[z-a\]\.tar: not a pattern"):
        list_shards(TarInput(uri=f"{tmp_path}/[z-a].tar"), store)


def test_a_name_that_is_not_utf8_is_text(tmp_path, store):
    try:
        (tmp_path / os.fsdecode(b"a\xff.tar")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")  # macOS: such files cannot exist there
    (shard,) = list_shards(TarInput(uri=str(tmp_path)), store)
    assert shard.name == "a\\xff.tar"
    assert shard.part.startswith("part-a-xff.tar-")
    with store.open(shard.stored) as file:
        assert file.read() == b"x"


def test_a_part_is_named_by_uri_and_version_alone():
    shard = Shard("a/b c.tar", "s3://x/a/b c.tar", "etag", 5)
    digest = hashlib.sha256(b"s3://x/a/b c.tar\netag").hexdigest()[:20]
    assert shard.part == f"part-a-b-c.tar-{digest}"
    assert shard.part != Shard("a/b c.tar", "s3://x/a/b c.tar", "etag2", 5).part
