"""Faults of a document of settings, in the words of somebody who has never heard of pydantic."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a section",
    "model_type": "a section",
    "model_attributes_type": "a section",
    "none_required": "nothing",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number from {ge:g} on",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number up to {le:g}",
    "too_short": "at least {min_length} in the list",
    "too_long": "at most {max_length} in the list",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "union_tag_invalid": "{expected_tags}",
    "union_tag_not_found": "required",
    "value_error": "{error}",
}
"""Expectations by pydantic's type of fault; the words in braces come from the fault."""
_WHOLE = ("missing", "union_tag_not_found", "value_error", "extra_forbidden", "assertion_error")
"""Types whose text says everything: neither `expected` nor what was found is added."""


def faults_of(model: type[BaseModel], error: ValidationError) -> list[str]:
    """Return one line per faulty place in the document; what alternatives expect is joined by "or"."""
    wants: dict[str, list[str]] = {}
    found: dict[str, str] = {}
    for fault in error.errors(include_url=False):
        path, owner, sections = _resolve(model, fault["loc"])
        if fault["type"].startswith("union_tag"):
            path = f"{path}.kind" if path else "kind"
        wants.setdefault(path, []).append(_unknown_key(fault, owner) or expected(fault, sections))
        if fault["type"] not in _WHOLE:
            found[path] = _shown(fault)
    # In a union, faults inside the alternative that the user chose are enough.
    wants = {path: want for path, want in wants.items() if not any(other.startswith(f"{path}.") for other in wants)}
    return [(f"{path}: " if path else "") + _sentence(wants[path], found.get(path)) for path in wants]


def expected(fault: ErrorDetails, sections: Sequence[type[BaseModel]] = ()) -> str:
    """Return what was expected where a fault is; `sections` are the models that may stand there."""
    kind, context = fault["type"], dict(fault.get("ctx", {}))
    if kind in ("missing", "extra_forbidden"):
        return "required" if kind == "missing" else "unknown key"
    if named := [one for one in sections if one.__name__ == context.get("class_name")]:
        return f"a section of {', '.join(named[0].model_fields)}"
    if kind == "union_tag_invalid":
        tags, _, last = str(context["expected_tags"]).rpartition(", ")
        context["expected_tags"] = f"{tags} or {last}" if tags else last
    return _EXPECTED.get(kind, fault["msg"].removeprefix("Input should be ")).format(**context)


def one_fault(error: ValidationError) -> str:
    """Return the first fault of a document that no user wrote: its place, and what was expected there."""
    fault = error.errors(include_url=False)[0]
    where, want = ".".join(map(str, fault["loc"])), expected(fault)
    told = want if fault["type"] in _WHOLE else f"expected {want}"
    return f"{where}: {told}" if where else told


def _sentence(wants: list[str], found: str | None) -> str:
    """Join what alternatives expect: `expected A, B or C, found X`; texts that say everything stand alone."""
    wants = list(dict.fromkeys(wants))
    if found is None:
        return " or ".join(wants)
    *others, last = wants
    return f"expected {', '.join(others)}{' or ' if others else ''}{last}{found}"


def _unknown_key(fault: ErrorDetails, owner: type[BaseModel]) -> str:
    if fault["type"] != "extra_forbidden":
        return ""
    valid = sorted(owner.model_fields)
    close = difflib.get_close_matches(str(fault["loc"][-1]), valid, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"unknown key{hint} (valid: {', '.join(valid)})"


def _shown(fault: ErrorDetails) -> str:
    """Name what was found; what is long or was never written is not."""
    value = fault["input"]
    if fault["type"] == "union_tag_invalid":
        value = fault.get("ctx", {})["tag"]
    if value is None:
        return ", found nothing"
    if isinstance(value, str | int | float | bool):
        return f", found {str(value).lower() if isinstance(value, bool) else repr(value)}"
    return ", found a list" if isinstance(value, list | tuple) else ", found a section"


def _resolve(model: type[BaseModel], loc: tuple[str | int, ...]) -> tuple[str, type[BaseModel], list[type[BaseModel]]]:
    """Return the dotted path as the user wrote it, the model that holds its last key, and the models that it may be.

    Tags of unions are left out of the path.
    """
    names: list[str] = []
    owner = model
    choices = [model]  # models in which the next step may be a key; empty inside a plain field
    for place, step in enumerate(loc):
        tagged = [choice for choice in choices if len(choices) > 1 and step in (_tag(choice), choice.__name__)]
        if tagged:
            choices = tagged
        elif choices and not _is_kind(step, choices[0]):
            names.append(str(step))
            field = choices[0].model_fields.get(str(step))
            if field or place == len(loc) - 1:  # otherwise it is a key in a mapping of models
                owner = choices[0]
                choices = _models(field.annotation) if field else []
        elif isinstance(step, int):
            names.append(str(step))
    return ".".join(names), owner, choices


def _is_kind(step: str | int, model: type[BaseModel]) -> bool:
    """Return whether pydantic names a member of a union in this step.

    It names a model, or a type such as `constrained-int` or `literal['auto']`.
    """
    return isinstance(step, str) and (
        model.__name__ in step or step.partition("[")[0] in ("constrained-int", "literal")
    )


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    return kind.default if kind else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
