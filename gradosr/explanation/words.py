"""Sentences for an explanation, for somebody who has not read how the detector works."""

from collections.abc import Sequence

from gradosr.explanation.explainer import Explanation, Measured
from gradosr.text import NBSP

SPEAKS = 0.95
"""Share of the known images that a part must exceed to be told."""
BEYOND = 0.99
"""Share of the known images above which, or below whose counterpart, a gradient lies beyond the known ones."""
MOST_LAYERS = 3
PARTS = {
    "max_logit": "the classifier is less sure of any class",
    "gradients": "the gradients are more like those of images that the classifier is unsure of",
    "scale": "the last features are spread more evenly over the channels",
    "middle": "the activations in the middle of the network are farther from every known class",
    "labels": "it is more like the images that people labelled unknown",
    "score": "the score is higher",
}
"""The meaning of a part that is high."""
SHORT = {
    "max_logit": "unsure of any class",
    "gradients": "gradients",
    "scale": "even features",
    "middle": "odd in the middle of the network",
    "beyond": "far from everything known",
    "labels": "like labelled unknown images",
    "score": "score",
}


def speaking(parts: Sequence[Measured]) -> list[Measured]:
    """Return the parts that stand out from those of the known images, the one that adds most first."""
    found = [one for one in parts if one.known_below is not None and one.known_below >= SPEAKS and one.value > 0]
    return sorted(found, key=lambda one: -one.value)


def short(explanation: Explanation) -> str:
    """Return the reasons in a few words; empty if none stands out."""
    return ", ".join(SHORT.get(one.name, one.name) for one in speaking(explanation.parts)[:2])


def sentences(explanation: Explanation) -> list[str]:
    """Return why the image has its score: parts that stand out, then gradients beyond those of known images."""
    loud = speaking(explanation.parts)
    far = any(one.name == "beyond" for one in loud)  # which says it all of `middle`
    lines = [_part(one) for one in loud if not (far and one.name == "middle")] or [_no_part(explanation)]
    beyond = [one for one in explanation.layers if one.known_below is not None and _out(one.known_below)]
    beyond.sort(key=lambda one: -abs((one.known_below or 0.5) - 0.5))
    lines += [_layer(one) for one in beyond[:MOST_LAYERS]]
    if len(beyond) > MOST_LAYERS:
        lines.append(f"{len(beyond) - MOST_LAYERS} more gradients lie beyond those of known images, too.")
    return lines


def _part(one: Measured) -> str:
    if one.name == "beyond":
        return "The middle of the network is farther from every known class than nearly all known images are."
    return f"{_begun(PARTS.get(one.name, one.name))} than for {_share(one.known_below)} known images."


def _no_part(explanation: Explanation) -> str:
    if all(one.known_below is None for one in explanation.parts):
        return "The bundle keeps nothing of its held-out images to compare with; the bars show what adds to the score."
    if explanation.is_unknown:
        return "No single part stands out; together they are more than for nearly all known images."
    return "Nothing stands out: the image is like the known ones."


def _layer(one: Measured) -> str:
    objective, _, parameter = one.name.partition("/")
    below = one.known_below or 0.0
    size, share = ("larger", below) if below > 0.5 else ("smaller", 1 - below)
    return f"The gradient of {parameter} ({objective}) is {size} than for {_share(share)} known images."


def _out(known_below: float) -> bool:
    return known_below >= BEYOND or known_below <= 1 - BEYOND


def _share(share: float | None) -> str:
    value = 100 * (share or 0.0)
    return "all" if value >= 100 else f"{value:.1f}{NBSP}% of" if value < 99.95 else f"over 99.9{NBSP}% of"


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]
