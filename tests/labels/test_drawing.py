"""Which images are handed out, and what their labels say of all images: by the draw alone, without assumptions."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_runs import calibration, rows, write_run

from gradosr.audit.rows import RunTable
from gradosr.errors import InputError
from gradosr.labels.drawing import Chooser, allocation, draw
from gradosr.labels.estimates import cells, figures, probabilities
from gradosr.labels.records import Round, claim, read_rounds
from gradosr.labels.verdicts import SCHEMA
from gradosr.store import Store

IMAGES = 400


def population(folder: Path, seed: int = 0, shards: int = 4, images: int = IMAGES) -> tuple[RunTable, dict[str, bool]]:
    """A run whose scores say something of the truth, but not all."""
    rng = np.random.default_rng(seed)
    unknown = rng.random(images) < 0.25
    scores = rng.normal(size=images) + 1.3 * unknown
    scores[rng.random(images) < 0.1] = 2.5  # ties
    names = [f"s{shard}.tar" for shard in range(shards)]
    made = {name: rows(name, scores[place::shards], calibration()) for place, name in enumerate(names)}
    truth = {
        row["key"]: bool(known)
        for place, name in enumerate(names)
        for row, known in zip(made[name], unknown[place::shards], strict=True)
    }
    return RunTable(Store(), write_run(folder, made, calibration())), truth


def verdicts_of(truth: dict[str, bool], keys: list[str]) -> pa.Table:
    facts = [{"key": key, "label": "x", "unknown": truth[key]} for key in keys]
    return pa.Table.from_pylist(facts, SCHEMA)


def handed(rounds: list[Round]) -> list[str]:
    return [image.key for made in rounds for image in made.images]


def test_half_are_the_highest_and_the_rest_is_drawn_by_strata(tmp_path: Path) -> None:
    table, truth = population(tmp_path / "run")
    made, found = draw(table, [], set(), 50, 0)
    assert [row["key"] for row in found] == handed([made])
    kinds = Counter(image.stratum for image in made.images)
    assert kinds.pop(None) == 25
    assert sum(kinds.values()) == 25
    assert all(number >= 2 for number in kinds.values())
    highest = [image for image in made.images if image.stratum is None]
    scores = sorted((row["unknown_score"] for part in table.parts for row in _rows(table, part)), reverse=True)
    assert [image.score for image in highest] == pytest.approx(scores[:25])
    assert [stratum.drawn for stratum in made.strata] == [kinds[number] for number in range(5)]
    assert sum(stratum.images for stratum in made.strata) == IMAGES - 25
    assert made == Round.model_validate_json(json.dumps(made.model_dump()))
    assert {image.key for image in made.images} <= truth.keys()


def _rows(table: RunTable, part: str) -> list[dict]:
    with table.open(part) as opened:
        return [row for _, group in opened.groups(["unknown_score", "key"]) for row in group.to_pylist()]


def test_the_same_seed_draws_the_same_and_another_one_others(tmp_path: Path) -> None:
    table, _ = population(tmp_path / "run")
    first, again, other = (set(handed([draw(table, [], set(), 50, seed)[0]])) for seed in (0, 0, 1))
    assert first == again
    assert 25 <= len(first & other) < 50


def test_nobody_gets_an_image_twice_until_none_is_left(tmp_path: Path) -> None:
    table, truth = population(tmp_path / "run", images=120)
    labelled = set(list(truth)[:15])
    rounds: list[Round] = []
    for left in (50, 50, 5):
        rounds.append(draw(table, rounds, labelled, 50, 0)[0])
        assert len(rounds[-1].images) == left
    assert Counter(handed(rounds)).most_common(1)[0][1] == 1
    assert not set(handed(rounds)) & labelled
    with pytest.raises(InputError, match="no image is left to look at: all are handed out or labelled"):
        draw(table, rounds, labelled, 50, 0)


def test_the_allocation_favours_large_strata_and_forgets_none() -> None:
    assert allocation([100, 400, 10_000, 10_000, 10_000], 25) == [2, 2, 7, 7, 7]
    assert allocation([0, 3, 1, 1000, 1000], 25) == [0, 2, 1, 11, 11]
    assert allocation([1, 1, 0, 0, 0], 25) == [1, 1, 0, 0, 0]


def estimates(table: RunTable, truth: dict[str, bool], plan: list[int], seed: int, skipped: float = 0.0, elsewhere=()):
    """Estimates and coverage after rounds of the sizes of `plan`, of which a share is skipped at random."""
    rng = np.random.default_rng(seed + 1)
    rounds: list[Round] = []
    labelled: set[str] = set()
    for number, size in enumerate(plan):
        rounds.append(draw(table, rounds, labelled, size, seed)[0])
        labelled |= {key for key in handed(rounds[-1:]) if rng.random() >= skipped}
        if number == 0:
            labelled |= set(elsewhere)
    return rounds, figures(rounds, verdicts_of(truth, sorted(labelled)))


@pytest.mark.parametrize(
    ("plan", "skipped", "elsewhere", "drawings"),
    [
        pytest.param([50], 0, 0, 50, id="one round"),
        pytest.param([20, 30, 20], 0, 0, 30, id="three rounds"),
        pytest.param([20, 30, 20], 0, 0, 300, id="three rounds, often", marks=pytest.mark.slow),
        pytest.param([60], 0.2, 0, 200, id="a fifth skipped", marks=pytest.mark.slow),
        pytest.param([40, 40], 0, 60, 200, id="labels given elsewhere in between", marks=pytest.mark.slow),
    ],
)
def test_the_estimates_are_unbiased_and_their_intervals_hold(
    tmp_path: Path, plan, skipped, elsewhere, drawings
) -> None:
    table, truth = population(tmp_path / "run", shards=1)
    over = {row["key"] for part in table.parts for row in _over(table, part)}
    share = sum(truth.values()) / len(truth)
    precision = sum(truth[key] for key in over) / len(over)
    odd = [key for key, unknown in truth.items() if unknown][:elsewhere]  # all unknown: as unlike the rest as can be
    found = [estimates(table, truth, plan, seed, skipped, odd)[1] for seed in range(drawings)]
    for name, true in (("unknown_share", share), ("precision", precision)):
        points = np.array([one[name]["estimate"] for one in found])
        error = points.std() / len(points) ** 0.5
        assert abs(points.mean() - true) < 4 * error, name
        covered = np.mean([one[name]["low"] <= true <= one[name]["high"] for one in found])
        assert covered >= 0.9, name
        assert {one[name]["images"] for one in found} == {len(truth) if name == "unknown_share" else len(over)}


def _over(table: RunTable, part: str) -> list[dict]:
    with table.open(part) as opened:
        found = [row for _, group in opened.groups(["key", "is_unknown"]) for row in group.to_pylist()]
    return [row for row in found if row["is_unknown"]]


def test_rounds_of_one_frame_count_as_one_sample(tmp_path: Path) -> None:
    table, truth = population(tmp_path / "run", shards=1)
    rounds, _ = estimates(table, truth, [50, 50, 50], 3)
    assert [made.frame for made in rounds] == [1, 1, 1]
    found = probabilities(rounds, set(handed(rounds)))
    assert set(found) == set(handed(rounds))
    images = [image for made in rounds for image in made.images]
    lowest = max(image.order for image in images if image.stratum is None)
    assert all(found[image.key] == 1 for image in images if image.order <= lowest)
    assert all(found[image.key] < 1 for image in images if image.order > lowest and not image.over)
    assert sum(1 / value for value in found.values()) == pytest.approx(IMAGES)


def test_labels_given_elsewhere_and_a_changed_table_begin_a_new_frame(tmp_path: Path) -> None:
    table, truth = population(tmp_path / "run", shards=4)
    uri = table.folder.uri
    rounds = [draw(RunTable(Store(), uri, table.parts[:3]), [], set(), 50, 0)[0]]
    rounds.append(draw(table, rounds, set(), 50, 0)[0])
    rounds.append(draw(table, rounds, set(), 50, 0)[0])
    stranger = next(key for key in truth if key not in handed(rounds))
    rounds.append(draw(table, rounds, {stranger}, 50, 0)[0])
    assert [made.frame for made in rounds] == [1, 2, 2, 4]
    assert {one.key for one in rounds[3].before} == {*handed(rounds[:3]), stranger}
    keys = {*handed(rounds), stranger}
    found = probabilities(rounds, keys)
    assert sum(1 / found[key] for key in keys) == pytest.approx(IMAGES)


def test_a_round_that_nobody_labelled_yet_does_not_count(tmp_path: Path) -> None:
    table, _ = population(tmp_path / "run")
    rounds = [draw(table, [], set(), 50, 0)[0]]
    alone = probabilities(rounds, set(handed(rounds)))
    rounds.append(draw(table, rounds, set(), 50, 0)[0])
    assert probabilities(rounds, set(handed(rounds[:1]))) == alone
    assert cells(rounds, set()) == []
    assert probabilities(rounds, set(handed(rounds[1:]))).keys() == set(handed(rounds[1:]))


def test_of_two_people_who_draw_at_once_one_draws_again(tmp_path: Path) -> None:
    table, _ = population(tmp_path / "run")
    uri = table.folder.uri
    mine, theirs = (draw(table, [], set(), 50, 0)[0] for _ in range(2))
    assert claim(Store(), uri, theirs)
    assert not claim(Store(), uri, mine)
    assert claim(Store(), uri, theirs)  # the store's first answer was lost
    assert read_rounds(Store(), uri) == [theirs]


def test_images_without_a_score_are_not_handed_out(tmp_path: Path) -> None:
    made = rows("s.tar", np.arange(30.0), calibration())
    for row in made[::2]:
        row.update(dict.fromkeys(["unknown_score", "p_value", "is_unknown"]), status="not_an_image")
    table = RunTable(Store(), write_run(tmp_path / "run", {"s": made}, calibration()))
    chooser = Chooser(table, frozenset(), 10, (0, 1))
    table.each(chooser.read)
    found, _ = chooser.chosen()
    assert sorted(row for row in found["row"].tolist() if row % 2 == 0) == []
    assert int(chooser.counts.sum()) == 15
