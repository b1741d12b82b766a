"""A long listing of a store with folders, which are listed side by side where that costs few requests more."""

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import NamedTuple

from gradosr.store.backends import StoredObject
from gradosr.store.threads import threads

SIDE_BY_SIDE = 16
"""Requests on their way at a time, and pages in memory."""
FOLDERS_A_PAGE = 4
"""Most folders that the first page may hold where folders are listed one by one: each takes a request of its own."""


class Page(NamedTuple):
    """One answer of a store."""

    objects: Sequence[StoredObject]
    folders: Sequence[str]
    """URIs of the folders below which nothing was listed, ending in `/`."""
    last: bool


Pages = Callable[[str, str], Iterator[Page]]
"""Function (uri, delimiter) -> the pages of all objects whose URI begins so, where a delimiter stops at folders."""


def listed(uri: str, pages: Pages) -> Iterator[StoredObject]:
    """Yield all objects whose URI begins with `uri`, in no order. What fits on one page takes one request."""
    serial = pages(uri, "")
    first = next(serial)
    if not first.last:
        folders, beside = _divided(uri, pages, first.objects)
        if folders != [uri]:
            yield from beside
            yield from _side_by_side(folders, pages)
            return
    yield from first.objects
    for page in serial:
        yield from page.objects


def _divided(uri: str, pages: Pages, first: Sequence[StoredObject]) -> tuple[list[str], list[StoredObject]]:
    """Divide what begins with `uri` into folders and the objects beside them.

    Go down until there are enough folders; stop at one that has more than a page of entries, and where folders have so
    few objects that the first page would hold too many of them.
    """
    final, open_folders, beside = list[str](), [uri], list[StoredObject]()
    while open_folders and len(final) + len(open_folders) < SIDE_BY_SIDE:
        levels = [next(pages(folder, "/")) for folder in open_folders]
        final += [folder for folder, level in zip(open_folders, levels, strict=True) if not level.last]
        whole = [level for level in levels if level.last]
        below = [folder for level in whole for folder in level.folders]
        if _touched([*final, *below], first) > FOLDERS_A_PAGE:
            closed = [folder for folder, level in zip(open_folders, levels, strict=True) if level.last]
            return [*final, *closed], beside
        beside += [found for level in whole for found in level.objects]
        open_folders = below
    return [*final, *open_folders], beside


def _touched(folders: Sequence[str], objects: Sequence[StoredObject]) -> int:
    """Return in how many of the folders, none of which is inside another, these objects lie."""
    ordered = sorted(folders)
    places = {bisect(ordered, found.uri) - 1 for found in objects}
    return len(places)


def _side_by_side(folders: Sequence[str], pages: Pages) -> Iterator[StoredObject]:
    """Yield the objects of all folders as their pages come. Raises what the listing of one of them raises."""
    waiting = (pages(folder, "") for folder in folders)
    with threads(SIDE_BY_SIDE, "list") as pool:
        running: dict[Future[Page], Iterator[Page]] = {}

        def ask(one: Iterator[Page] | None) -> None:
            if one is not None:
                running[pool.submit(next, one)] = one

        for _ in range(SIDE_BY_SIDE):
            ask(next(waiting, None))
        while running:
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                asked, page = running.pop(done), done.result()
                ask(next(waiting, None) if page.last else asked)
                yield from page.objects
