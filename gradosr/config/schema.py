"""JSON Schemas of config files, from which editors complete and check them."""

from typing import Any

from gradosr.config.load import KINDS

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema_of(kind: str) -> dict[str, Any]:
    """Return the JSON Schema of a kind of config: fit, score, screen or protocol."""
    return {"$schema": DRAFT, **KINDS[kind].model_json_schema()}


def schema_line(uri: str) -> str:
    """Return the first line of a config file that tells an editor's YAML language server where the schema is."""
    return f"# yaml-language-server: $schema={uri}\n"
