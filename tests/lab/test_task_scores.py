"""p-values of a protocol's tasks, pooled and per class."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tiny import TRANSFORM

from gradosr.config import OsrProtocol
from gradosr.errors import InputError
from gradosr.lab.evaluation.protocol import TaskScores, _made_of
from gradosr.lab.evaluation.tables import markdown, measure

CLASSES = ("cat", "dog")


def protocol(**changes: Any) -> OsrProtocol:
    classifier = {
        "arch": "tiny_net:tiny",
        "args": {"num_classes": 2},
        "transform": TRANSFORM,
        "weights": "w.safetensors",
    }
    document = {
        "input": {"kind": "images", "uri": "/train/"},
        "test": {"kind": "images", "uri": "/test/"},
        "tasks": [{"name": "pets", "classifier": classifier | {"classes": CLASSES}}],
        "detectors": {"one_class": {"kind": "one_class"}},
        "output": "/out/",
        "false_alarm_rate": 0.1,
    }
    return OsrProtocol.model_validate(document | changes)


def task(known: int = 100) -> TaskScores:
    """Dogs score three times as high as cats."""
    rng = np.random.default_rng(0)
    sets = ["calibration"] * known + ["test"] * 300
    predicted = rng.integers(0, 2, len(sets))
    scores = rng.normal(size=len(sets)) * (1 + 2 * predicted)
    labels = [CLASSES[k] if i % 5 or i < known else "bird" for i, k in enumerate(predicted)]
    columns = {"set": sets, "key": [str(i) for i in range(len(sets))], "label": labels}
    rows = pa.table({**columns, "predicted": [CLASSES[k] for k in predicted], "one_class": scores})
    return TaskScores("pets", CLASSES, rows, {})


def by_definition(made: TaskScores, *, per_class: bool) -> list[float]:
    known, test = made.of("calibration").to_pylist(), made.of("test").to_pylist()
    found = []
    for one in test:
        own = [k["one_class"] for k in known if not per_class or k["predicted"] == one["predicted"]]
        found.append((1 + sum(np.float32(k) >= np.float32(one["one_class"]) for k in own)) / (len(own) + 1))
    return found


@pytest.mark.parametrize("kind", ["pooled", "per_class"])
def test_p_values_are_those_of_the_kind_of_calibration(kind: str) -> None:
    asked, made = protocol(calibration=kind), task()
    np.testing.assert_allclose(
        made.p_values(asked, "one_class"), by_definition(made, per_class=kind == "per_class"), rtol=1e-6
    )
    measured = measure(asked, made)
    assert "Known test images over the threshold, p <= 0.1" in markdown(asked, [measured])
    alarms = measured.detectors["one_class"].false_alarms_by_class
    assert (alarms["dog"] - alarms["cat"] > 0.1) == (kind == "pooled")


def test_scores_that_are_there_serve_both_kinds() -> None:
    pooled, per_class = protocol(), protocol(calibration="per_class")
    assert _made_of(pooled, pooled.tasks[0]) == _made_of(per_class, per_class.tasks[0])
    assert per_class.fit_job(per_class.tasks[0], per_class.detectors["one_class"]).calibration == "per_class"
    with pytest.raises(InputError, match="too few calibration images by predicted class"):
        task(15).p_values(per_class, "one_class")
