"""MkDocs hook: pages made from click, from the settings' models, and from files elsewhere in the repository."""

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from gradosr.jobs.cli import cli
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from gradosr.config import AuditSettings, FitJob, OsrProtocol, ScoreJob, ScreenJob
from gradosr.config.settings import Settings

ROOT = Path(__file__).parent.parent
INCLUDED = {
    "README.md": "index.md",
    "cluster/README.md": "how-to/cluster-setup.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
}
"""Pages that are files of the repository, by their place there."""
MODELS: dict[str, tuple[str, type[Settings]]] = {
    "fit": ("gradosr fit", FitJob),
    "score": ("gradosr score", ScoreJob),
    "screen": ("gradosr screen", ScreenJob),
    "audit": ("gradosr audit", AuditSettings),
    "protocol": ("gradosr evaluate --protocol osr", OsrProtocol),
}
"""Command that takes the settings, and their model, by page."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made to those of the folder."""
    made = {page: included(place) for place, page in INCLUDED.items()}
    made["reference/cli.md"] = "\n\n".join(["# Command line", *command_sections(cli, "gradosr", 2)])
    made |= {f"reference/{page}.md": settings_page(*line) for page, line in MODELS.items()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def included(place: str) -> str:
    """Return the text of a file of the repository, with its links as they are on its page."""

    def moved(link: re.Match[str]) -> str:
        target, _, anchor = link[1].partition("#")
        if "://" in target or not target:
            return link[0]
        in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(place), target))
        on_site = INCLUDED.get(in_repository, in_repository.removeprefix("docs/"))
        relative = posixpath.relpath(on_site, posixpath.dirname(INCLUDED[place]) or ".")
        return f"]({relative}{'#' if anchor else ''}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, (ROOT / place).read_text(encoding="utf-8"))


def command_sections(command: click.Command, name: str, level: int) -> Iterator[str]:
    """Yield heading, usage, help and options of a command and of its subcommands."""
    context = click.Context(command, info_name=name)
    usage = " ".join([name, *command.collect_usage_pieces(context)])
    yield f"{'#' * level} {name}\n\n```text\n{usage}\n```\n\n{prose(command.help or '')}"
    options = [option.get_help_record(context) for option in command.params if isinstance(option, click.Option)]
    if rows := [f"| {code(found[0])} | {cell(found[1])} |" for found in options if found]:
        yield "\n".join(["| option | meaning |", "|---|---|", *rows])
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            if found := command.get_command(context, sub):
                yield from command_sections(found, f"{name} {sub}", level + (name != "gradosr"))


def settings_page(command: str, model: type[Settings]) -> str:
    """Return a page with a table of fields for a model and for each section in it."""
    schema = model.model_json_schema()
    parts = [f"# Settings of `{command}`", section(schema, schema)]
    for name, inner in sorted(schema.get("$defs", {}).items()):
        if "properties" in inner:
            parts += [f"## {name}", section(inner, schema)]
    return "\n\n".join(parts)


def section(model: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return a model's description and the table of its fields."""
    needed = model.get("required", [])
    rows = [
        f"| `{name}` | {kind(field, schema)} | {'required' if name in needed else default(field)} | "
        f"{cell(field.get('description', ''))} |"
        for name, field in model["properties"].items()
    ]
    table = "\n".join(["| field | kind | default | meaning |", "|---|---|---|---|", *rows])
    return f"{prose(model.get('description', ''))}\n\n{table}"


def kind(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return what values a field takes, as Markdown."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        inner = schema["$defs"][name]
        return f"[{name}](#{name.lower()})" if "properties" in inner else kind(inner, schema)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in field:
            given = [one for one in field[union] if one.get("type") != "null"]
            return " or ".join(dict.fromkeys(kind(one, schema) for one in given))
    if "const" in field or "enum" in field:
        return " or ".join(code(str(one)) for one in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        inner = field.get("items") or {"anyOf": field.get("prefixItems", [{}])}
        return f"list of {kind(inner, schema)}"
    if field.get("type") == "object":
        inner = field.get("additionalProperties")
        return f"mapping to {kind(inner, schema)}" if isinstance(inner, dict) else "mapping"
    return str(field.get("type", "anything")) + bounds(field)


def default(field: dict[str, Any]) -> str:
    """Return the default of a field that is not required, as Markdown; a section's are in its own table."""
    value = field.get("default")
    return "" if value is None or (isinstance(value, dict) and value) else code(json.dumps(value))


def bounds(field: dict[str, Any]) -> str:
    """Return the limits of a number, as Markdown."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return "".join(f" {sign} {field[name]}" for name, sign in signs.items() if name in field)


def prose(text: str) -> str:
    """Return a docstring as a paragraph of Markdown, in which nothing is markup but code."""
    return re.sub(r"(?m)^[ \t]+", "", text.replace("\b", "")).replace("<", "&lt;").replace("*", "\\*")


def code(text: str) -> str:
    """Return text as code, which nothing in a table cuts."""
    return f"`{' '.join(text.split())}`"


def cell(text: str) -> str:
    """Return text for a cell of a table."""
    return " ".join(prose(text).replace("|", "\\|").split())
