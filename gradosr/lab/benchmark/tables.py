"""Tables of benchmark figures, for a terminal and for docs/cost.md."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradosr.errors import ConfigError
from gradosr.gradients.explain import Explained
from gradosr.lab.benchmark.contenders import FORWARD, LOOP, OURS, TRAINING_STEP, VMAP
from gradosr.lab.conformance import Conformance, Failure

BEGIN, END = "<!-- speed: written by `make bench` -->", "<!-- end of speed -->"
MISSING = "-"

Facts = Mapping[str, Any]


def table(facts: Facts) -> str:
    """Format one row per contender."""
    head = f"{_configuration(facts)}, {facts['precision']}, {facts['device']}, torch {facts['torch']}"
    columns = f"{'':20}{'images/s':>10}{'of training step: time':>24}{'memory':>8}{'memory, MB':>12}"
    rows = [
        f"{name:20}{speed:10,.1f}{facts['of_training_step'][name]:24.2f}"
        f"{_number(facts['memory_of_training_step'].get(name), '.2f'):>8}"
        f"{_number(_megabytes(facts, name), ',.0f'):>12}"
        for name, speed in facts["images_per_second"].items()
    ]
    failed = [f"{name:20}failed: {reason}" for name, reason in facts["failed"].items()]
    return "\n".join([head, columns, *rows, *failed, f"largest difference to the slow definition {_difference(facts)}"])


def explained_table(explained: Sequence[Explained]) -> str:
    """Format one row per parameter."""
    wide = max(len(one.parameter) for one in explained)
    wide_rule = max(len("rule"), *(len(one.rule) for one in explained))
    head = f"{'parameter':{wide}}  {'rule':{wide_rule}}  {'ms':>8}  form (ms of all when it was chosen)"
    rows = [
        f"{one.parameter:{wide}}  {one.rule:{wide_rule}}  {_number(one.milliseconds, '.2f'):>8}  {_forms(one)}".rstrip()
        for one in explained
    ]
    return "\n".join([head, *rows])


def conformance_line(one: Conformance | Failure) -> str:
    """Format a result, with errors as fractions of their bounds."""
    if isinstance(one, Failure):
        return f"{one.arch}  FAILED: {one.reason}"
    verdict = "conforms" if one.conforms else "DOES NOT CONFORM"
    fallback = f"  fallback: {', '.join(one.fallback)}" if one.fallback else ""
    return (
        f"{one.arch}  {one.size} pixels  {one.parameters} tensors  error / bound: float64 {one.float64:.3g}, "
        f"float32 {one.float32:.3g}  {verdict}{fallback}"
    )


def markdown(measured: Sequence[Facts]) -> str:
    """Format one row per configuration, below a description of the device and software."""
    first = measured[0]
    about = (
        f"Images per second on {first['device']}, torch {first['torch']}, float32 (`make bench`; medians of "
        f"{first['runs']} paired runs; memory is what the batch takes beyond the classifier; the difference is the "
        "largest relative one of any norm to plain autograd on a batch of one):"
    )
    names = (FORWARD, TRAINING_STEP, OURS, LOOP, VMAP)
    heads = (*names, "time, gradosr / training step", "memory, gradosr / training step", "difference")
    rows = [_row(("", *heads)), "|" + "---|" * (1 + len(heads))]
    rows += [
        _row((
            _configuration(facts),
            *(_number(facts["images_per_second"].get(name), ",.0f") for name in names),
            _number(facts["of_training_step"][OURS], ".2f"),
            _number(facts["memory_of_training_step"].get(OURS), ".2f"),
            _difference(facts),
        ))
        for facts in measured
    ]  # fmt: skip
    return "\n".join([about, "", *rows])


def check_marked(text: str, source: str) -> None:
    """Raise ConfigError if the text has no place for the table."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(END) < text.index(BEGIN):
        raise ConfigError(f"{source}: needs one line {BEGIN} and, below, one line {END}")


def replaced(text: str, content: str) -> str:
    """Return the text with `content` between its two markers."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.partition(END)[2]}"


def _configuration(facts: Facts) -> str:
    return f"{facts['arch'].partition(':')[2]}, {facts['size']} pixels, batch {facts['batch']}"


def _forms(one: Explained) -> str:
    tried = [f"{form} {ms:.2f}" for form, ms in one.measured.items()]
    return f"{one.form} ({', '.join(tried)})" if tried else ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _difference(facts: Facts) -> str:
    return f"{facts['largest_difference']:.1e}"


def _megabytes(facts: Facts, name: str) -> float | None:
    return facts["memory_bytes"][name] / 1e6 if name in facts["memory_bytes"] else None


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)
