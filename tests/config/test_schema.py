"""Schemas are published, whole and true; errors about a config need no knowledge of pydantic."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from gradosr.jobs.cli import run
from pydantic import BaseModel
from test_configs import CONFIGS, ROOT

from gradosr.config import KINDS
from gradosr.config.load import kind_of
from gradosr.config.schema import schema_of
from gradosr.config.settings import as_yaml, load_settings
from gradosr.errors import ConfigError

LOCKED = re.search(r"^pydantic==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_schema_is_what_the_command_prints(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    if LOCKED is None or version("pydantic") != LOCKED[1]:
        pytest.skip("written with the pydantic of requirements.lock")  # others order keys otherwise
    assert run(["schema", kind]) == 0
    printed = capsys.readouterr().out
    file = ROOT / "configs" / "schema" / f"{kind}.json"
    assert printed == file.read_text(), f"gradosr schema {kind} > configs/schema/{kind}.json"


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_described(kind: str) -> None:
    schema = schema_of(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    sections = {kind: schema, **schema["$defs"]}
    bare = [
        f"{name}.{field}"
        for name, section in sections.items()
        for field, about in section.get("properties", {}).items()
        if not about.get("description")
    ]
    assert bare == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_names_its_schema_and_is_valid_by_it(path: Path) -> None:
    text = path.read_text()
    named = re.match(r"# yaml-language-server: \$schema=(schema/\w+\.json)\n", text)
    assert named
    document = yaml.safe_load(text)
    assert named[1] == f"schema/{kind_of(document)}.json"
    schema = json.loads((path.parent / named[1]).read_text())
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document | {"no_such_key": 1}, schema)


# --- Errors ---

JARGON = re.compile(
    r"Input |instance of|dictionary|tuple|string|constrained|literal\[|discriminator|pydantic|Extra|validat|\bint\b"
    r"|\bNone\b"
)
WRONG: tuple[Any, ...] = ({}, {"a": 1}, [], [[]], "no such value", "", -1, 0, 1.5, True, None, [1, 2], {"kind": "zip"})


def paths(model: type[BaseModel], prefix: str = "", seen: tuple[type, ...] = ()) -> list[str]:
    """Every key of a config, with sections in it; a key of each alternative of a union."""
    found = []
    for name, field in model.model_fields.items():
        found.append(f"{prefix}{name}")
        for inner in models(field.annotation):
            if inner not in seen:
                kind = inner.model_fields.get("kind")
                tag = kind.default if kind and isinstance(kind.default, str) else None
                found += [f"{path}|{tag}" if tag and "|" not in path else path
                          for path in paths(inner, f"{prefix}{name}.", (*seen, inner))]  # fmt: skip
    return found


def models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for argument in getattr(annotation, "__args__", ()) for one in models(argument)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_error_about_a_config_is_in_the_words_of_pydantic(kind: str) -> None:
    lines, tried = set[str](), 0
    for marked in paths(KINDS[kind]):
        path, _, tag = marked.partition("|")
        for value in WRONG:
            overrides = [f"{path.rpartition('.')[0]}.kind={tag}"] if tag and "." in path else []
            try:
                load_settings(KINDS[kind], "", "x", [*overrides, f"{path}={json.dumps(value)}"])
            except ConfigError as error:
                lines |= {line.removeprefix("x: ") for line in str(error).splitlines()}
            tried += 1
    assert tried > 300
    said = {re.sub(r", found .*$", "", line) for line in lines}
    assert [line for line in sorted(said) if JARGON.search(line)] == []
    assert all(re.match(r"[\w.|-]+: ", line) or " required" in line or "expected" in line for line in said), said
    assert len(said) > 50


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_printed_config_is_read_back_as_the_same_job(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    model = KINDS[kind_of(document) or ""]
    job = load_settings(model, path.read_text(), path.name)
    assert load_settings(model, as_yaml(job.model_dump(mode="json")), "again") == job
