"""Records of the images handed out for labelling: RUN/labels/drawn-NNNNNN.json, one per round.

The number makes the round: of two people who draw at once, one writes it, and the other draws again without the first
one's images.
"""

import json
import secrets
from collections.abc import Iterator, Sequence
from functools import partial

from pydantic import BaseModel, ConfigDict, ValidationError

from gradosr.errors import InputError
from gradosr.labels.folder import names_in
from gradosr.results.folder import RunFolder
from gradosr.store import Store
from gradosr.store.threads import threads


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Stratum(_Facts):
    """The images between two p-values that were left after the highest of the round were taken."""

    p_values_up_to: float
    images: int
    drawn: int


class Place(_Facts):
    """An image and its place in the table."""

    key: str
    shard: str
    score: float
    over: bool
    """Whether it is over the threshold."""
    part: int
    row: int
    """Number of its part, and of its row there: they order images of equal score."""

    @property
    def order(self) -> tuple[float, int, int]:
        """The sort key that puts the highest score first."""
        return (-self.score, self.part, self.row)


class Drawn(Place):
    """An image that was handed out."""

    stratum: int | None
    """Number of the stratum that it was drawn from; None for one of the highest scores."""


class Round(_Facts):
    """The images of one `--next`, and the design by which they were chosen (drawing.py)."""

    number: int
    frame: int
    """Number of the first round that drew from the same images; rounds of one frame make one sample."""
    parts: str
    """Digest of the names of the parts of the table."""
    seed: int
    when: str
    token: str
    strata: tuple[Stratum, ...]
    images: tuple[Drawn, ...]
    before: tuple[Place, ...]
    """The images of the table that were handed out or labelled before the frame began."""


def read_rounds(store: Store, run_uri: str) -> list[Round]:
    """Return the records of all rounds in order. Raises InputError if one is damaged."""
    names = sorted(name for name in names_in(store, run_uri) if name.startswith("drawn-"))
    with threads(8, "rounds") as pool:
        return list(pool.map(partial(_read, store, run_uri), names))


def _read(store: Store, run_uri: str, name: str) -> Round:
    uri = RunFolder(store, run_uri).path("labels", name)
    try:
        return Round.model_validate_json(store.read(uri))
    except ValidationError as error:
        raise InputError(f"{uri}: not a record of images handed out, or damaged") from error


def claim(store: Store, run_uri: str, made: Round) -> bool:
    """Write the record of a round; False if somebody else has written that of the same number."""
    uri = RunFolder(store, run_uri).path("labels", f"drawn-{made.number:06}.json")
    body = json.dumps(made.model_dump()).encode()
    # An answer that was lost looks like somebody else's record, and the token tells whose it is.
    return store.write(uri, body, if_absent=True) or _read(store, run_uri, uri.rpartition("/")[2]).token == made.token


def new_token() -> str:
    """Return a token that no other record has."""
    return secrets.token_hex(8)


def handed_out(rounds: Sequence[Round]) -> Iterator[Drawn]:
    """Yield the images of all rounds, each once."""
    yield from {image.key: image for made in rounds for image in made.images}.values()
