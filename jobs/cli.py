"""The `gradosr` command: its group, the flags that jobs share, and errors as exit codes.

Job modules import click alone at the top; the library is imported inside their bodies, so that
`gradosr --help` answers at once.
"""

import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, TypeVar

import click

COMMANDS = ("fit", "score", "submit", "status", "logs", "cancel", "evaluate", "pack", "bench", "demo")

DONE, FAILED, USAGE, INPUT, INCOMPLETE, ACTIVE, INTERRUPTED = 0, 1, 2, 4, 5, 7, 130

F = TypeVar("F", bound=Callable[..., Any])


class Terminated(BaseException):
    """SIGTERM arrived."""


class Commands(click.Group):
    """Imports the module of a command when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of a user's work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The click command in the module of the same name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f".{cmd_name}", __package__), cmd_name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gradosr")
def cli() -> None:
    """Find what an image classifier has never seen, in archives of any size.

    A job is a YAML file; --set KEY=VALUE changes a field of it. stdout is data, stderr is messages.

    Exit codes: 0 done, 1 failed (run it again to go on), 2 usage or config, 4 input or credentials,
    5 finished with quarantined shards, 7 the same run is already active, 130 or 143 interrupted
    (run it again to go on).
    """


config_argument = click.argument("config", type=click.Path())
json_flag = click.option("--json", "as_json", is_flag=True, help="Print the facts as one JSON document on stdout.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a config field; repeatable; values are YAML."
)

address_option = click.option(
    "--address",
    metavar="URL",
    help="Job server of the Ray cluster: http://HEAD:8265. Default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, if set.",
)


def job_flags(command: F) -> F:
    """CONFIG, --set and --json."""
    return config_argument(set_option(json_flag(command)))


def run(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code and leaves one line per fault on stderr."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli(args=arguments, prog_name="gradosr", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return _say("interrupted; the same command goes on from here", INTERRUPTED)
    except Terminated:
        return _say("terminated; the same command goes on from here", 143)
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        from gradosr.errors import GradosrError

        if not isinstance(error, GradosrError):
            raise
        return _say(str(error), _exit_code(error))
    return int(code or DONE)


def _exit_code(error: Exception) -> int:
    from gradosr.errors import ConfigError, InputError, RunActive

    codes = {ConfigError: USAGE, InputError: INPUT, RunActive: ACTIVE}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), FAILED)


def _say(message: str, code: int) -> int:
    from gradosr.telemetry import printable

    for line in message.splitlines():
        click.echo(f"gradosr: {printable(line)}", err=True)
    return code


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise Terminated


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run())


if __name__ == "__main__":
    main()
