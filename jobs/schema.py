"""gradosr schema: print the JSON Schema of a kind of config."""

import json

import click


@click.command()
@click.argument("kind", type=click.Choice(["fit", "score", "screen", "protocol"]))
def schema(kind: str) -> None:
    """Print the JSON Schema of a config for fit, score, screen or evaluate --protocol, for editors and other tools.

    An editor with a YAML language server (VS Code, Neovim, Emacs, JetBrains) reads it where the first line of a config
    says "# yaml-language-server: $schema=FILE", as `gradosr init` writes it.
    """
    from gradosr.config.schema import schema_of

    click.echo(json.dumps(schema_of(kind), indent=2))
