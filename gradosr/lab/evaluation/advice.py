"""Advice on the detector of a bundle: whether a score of the logits alone does as well on the same rows.

Measured are the scores as the rows have them: of the mean logits of image and mirror image where the bundle sees both.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradosr.bundle.manifest import read_manifest
from gradosr.comparison.figures import Labelled, figures
from gradosr.config import BaselineSettings, Signals
from gradosr.errors import ConfigError, GradosrError, first_line
from gradosr.lab.evaluation.metrics import auroc
from gradosr.lab.evaluation.rows import OWN, LabelledRows
from gradosr.store import Store

CHEAP: Mapping[str, str] = {"MSP": "msp", "max logit": "max_logit", "energy": "energy"}
"""Kind of the detector by the name of its score."""
MARGIN = 0.01
"""Loss of AUROC that is not worth a dearer detector: a cheap one is as good if its interval excludes a larger loss."""
BETTER, AS_GOOD, WORSE, UNDECIDED, KEEP = "better", "as good", "worse", "undecided", "none cheaper"


@dataclass(frozen=True)
class Advice:
    """The best score of the logits beside the unknown score."""

    verdict: str
    """BETTER, AS_GOOD or WORSE than the unknown score, UNDECIDED if the images are too few to tell, or KEEP: the
    bundle's detector takes no more passes, and none of the others is better."""
    score: str
    """Name of the best of the cheap scores; being the best of three on these rows flatters it a little."""
    detector: Mapping[str, Any]
    """Settings of the detector that has this score."""
    auroc: float
    own_auroc: float
    difference: Mapping[str, float]
    """AUROC less that of the unknown score, with the paired 95 % interval (DeLong et al. 1988) and p-value."""
    passes: float | None
    own_passes: float | None

    def sentence(self) -> str:
        """Return the recommendation for people."""
        signed = (f"{self.difference[name]:+.4f}" for name in ("estimate", "low", "high"))
        shown = "AUROC {:.4f} against {:.4f}, difference {} [{}, {}]".format(self.auroc, self.own_auroc, *signed)
        if self.verdict == KEEP:
            return f"keep the detector: none of the scores beside it is better here (best: {self.score}, {shown})"
        if self.verdict == WORSE:
            return f"keep the detector: the best of the cheap scores, {self.score}, is worse here ({shown})"
        if self.verdict == UNDECIDED:
            return f"too few images to tell the unknown score from {self.score} ({shown}): label more"
        settings = "{" + ", ".join(f"{name}: {str(value).lower()}" for name, value in self.detector.items()) + "}"
        return f"{self.score} is {self.verdict} here ({shown}){self._cost()}: detector: {settings}{self._single()}"

    def _cost(self) -> str:
        if self.passes is None or self.own_passes is None:
            return ""
        if self.passes == self.own_passes:
            return " at the same cost"
        return f" and takes {self.passes:g} passes per image instead of {self.own_passes:g}"

    def _single(self) -> str:
        if not self.detector.get("mirror"):
            return ""
        return "; without the mirror image it takes 1, but how good it is then these rows do not tell"


def advise(rows: LabelledRows, signals: Signals | None) -> Advice | None:
    """Compare the unknown score with the best cheap one; None if there are too few images."""
    areas = {name: auroc(rows.scores[name], rows.unknown) for name in CHEAP} if rows.both else {}
    best = max(areas, key=lambda name: areas[name], default="energy")
    images = Labelled(rows.unknown, (rows.scores[OWN], rows.scores[best]), (rows.called, rows.called))
    found = figures(images)["auroc"]
    if found is None:
        return None
    own_passes, passes = passes_of(OWN, signals), passes_of(best, signals)
    change = found["difference"]
    cheaper = own_passes is None or passes is None or passes < own_passes
    return Advice(
        verdict=_verdict(change["low"], change["high"], cheaper),
        score=best,
        detector={"kind": CHEAP[best]} | ({"mirror": True} if signals and signals.mirror else {}),
        auroc=found["after"]["estimate"],
        own_auroc=found["before"]["estimate"],
        difference=change,
        passes=passes,
        own_passes=own_passes,
    )


def _verdict(low: float, high: float, cheaper: bool) -> str:
    if low > 0:
        return BETTER
    if not cheaper:
        return KEEP
    if low >= -MARGIN:
        return AS_GOOD
    return WORSE if high < 0 else UNDECIDED


def passes_of(name: str, signals: Signals | None) -> float | None:
    """Return the passes per image for a score, seen in the same views; None if the bundle's signals are not known."""
    if signals is None:
        return None
    if name == OWN:
        return signals.passes
    return BaselineSettings(kind=CHEAP[name], mirror=signals.mirror).signals.passes


def signals_of(store: Store, about: Mapping[str, Any], bundle: str | None) -> tuple[Signals | None, str]:
    """Return the signals of the bundle that a run was scored with, or why they are not known.

    `bundle` says where it is, else run.json. Raises ConfigError if that is another bundle.
    """
    uri = bundle or about["bundle"]
    if uri is None:
        return None, "run.json does not say where the bundle is: --set bundle=URI"
    try:
        manifest, digest = read_manifest(store, uri)
    except GradosrError as error:
        if bundle:
            raise
        return None, f"the bundle cannot be read ({first_line(error)}): --set bundle=URI"
    if digest == about["fingerprint"]["bundle"]:
        return manifest, ""
    if bundle:
        raise ConfigError(f"bundle: {uri} is not the bundle that the run was scored with")
    return None, f"{uri} is not the bundle that the run was scored with: --set bundle=URI"
