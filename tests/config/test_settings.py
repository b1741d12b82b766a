"""A YAML document becomes strict settings, or a line per fault."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from gradosr.config.score import Allowance
from gradosr.config.settings import Settings, as_yaml, load_settings
from gradosr.errors import ConfigError


class Circle(Settings):
    kind: Literal["circle"] = "circle"
    radius: float


class Square(Settings):
    kind: Literal["square"] = "square"
    side: Annotated[int, Field(gt=0)]


class Drawing(Settings):
    shape: Annotated[Circle | Square, Field(discriminator="kind")]
    count: int | Literal["auto"] = "auto"
    layers: dict[str, Square] = {}
    names: tuple[str, ...] = ()
    fill: Annotated[int, Field(gt=0)] | Literal["none"] | Square = "none"


FAULTS = {
    "shape: {kind: circle, radius: 1}\ncuont: 2": "d.yaml: cuont: unknown key; did you mean count? "
    "(valid: count, fill, layers, names, shape)",
    "shape: {kind: circle, radius: 1}\nfoo: 2": "d.yaml: foo: unknown key (valid: count, fill, layers, names, shape)",
    "count: 3": "d.yaml: shape: required",
    "shape: {kind: circle, radus: 2}": "d.yaml: shape.radius: required\n"
    "d.yaml: shape.radus: unknown key; did you mean radius? (valid: kind, radius)",
    "shape: {kind: square, side: 0}": "d.yaml: shape.side: expected a number above 0, found 0",
    "shape: {kind: blob}": "d.yaml: shape.kind: expected 'circle' or 'square', found 'blob'",
    "shape: {radius: 1}": "d.yaml: shape.kind: required",
    "shape: {kind: circle, radius: 1}\ncount: many": "d.yaml: count: expected a whole number or 'auto', found 'many'",
    "shape: {kind: circle, radius: 1}\nlayers: {top: {side: x}}": "d.yaml: layers.top.side: expected a whole number, "
    "found 'x'",
    "shape: {kind: circle, radius: 1}\nfill: 0": "d.yaml: fill: expected a number above 0, 'none' or a section of "
    "kind, side, found 0",
    "shape: {kind: circle, radius: 1}\nfill: {side: 0}": "d.yaml: fill.side: expected a number above 0, found 0",
    "shape: {kind: circle, radius: .inf}\nnames: cat": "d.yaml: names: expected a list, found 'cat'",
    "shape: {kind: circle, radius: true}\nnames: [[1]]": "d.yaml: names.0: expected a text, found a list",
}


@pytest.mark.parametrize("text", FAULTS)
def test_every_fault_is_a_line_with_its_place(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(Drawing, text, "d.yaml")
    assert str(caught.value) == FAULTS[text]


def test_overrides_are_yaml_and_come_last() -> None:
    drawing = load_settings(
        Drawing, "shape: {kind: circle, radius: 1}", "d.yaml", ["shape.radius=2.5", "count=3", "names=[a, b]"]
    )
    assert (drawing.shape, drawing.count, drawing.names) == (Circle(radius=2.5), 3, ("a", "b"))


class Reader(Settings):
    """Every way in which settings take a number."""

    bound: Allowance = 0
    rate: float = 0
    args: dict[str, Any] = {}
    name: str = ""


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "0.1e-2", ".1e-2", "1.0e-3", "+1e-3", "10e-4", "0.001"])
def test_a_number_is_a_number_wherever_it_stands(text: str) -> None:
    written = load_settings(Reader, f"{{bound: {text}, rate: {text}, args: {{eps: {text}}}}}", "d.yaml")
    said = load_settings(Reader, "", "d.yaml", [f"bound={text}", f"rate={text}", f"args.eps={text}"])
    assert written == said
    assert (said.bound, said.rate, said.args["eps"]) == pytest.approx((0.001, 0.001, 0.001))


@pytest.mark.parametrize("text", ["1e", "e3", "1e-3x", "1-e3", "v1e3", "1e3.5", "."])
def test_what_only_resembles_a_number_stays_a_text(text: str) -> None:
    assert load_settings(Reader, f"name: {text}", "d.yaml").name == text


@pytest.mark.parametrize("text", ["1e-3", "5e10", "1.5", "true", "null", "12", "a"])
def test_a_document_written_here_is_read_back_the_same(text: str) -> None:
    document = {"name": text, "rate": 1e-05, "bound": 3}
    assert load_settings(Reader, as_yaml(document), "d.yaml").model_dump(exclude={"args"}) == document


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Circle(radius=1.0).radius = 2.0  # type: ignore[misc]
