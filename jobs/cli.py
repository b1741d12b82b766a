"""The `gradosr` command: its group, the flags that jobs share, and the exit code of each error.

Job modules import only click at the top. The library is imported inside the commands, so that `gradosr --help` answers
at once.
"""

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, TypeVar

import click

COMMANDS = (
    *("init", "fit", "check", "score", "rescore", "submit", "status", "logs", "cancel", "audit", "label", "learn"),
    *("extend", "compare", "explain", "screen", "schedule", "evaluate", "pack", "compact", "bench", "schema", "demo"),
)

LOG_INTERVAL = 30.0
"""Seconds between progress lines when stderr is not a terminal."""
DONE, FAILED, USAGE, INPUT, INCOMPLETE, TRIPPED, ACTIVE, INTERRUPTED = 0, 1, 2, 4, 5, 6, 7, 130

F = TypeVar("F", bound=Callable[..., Any])


class Terminated(BaseException):
    """The exception raised on SIGTERM."""


class Commands(click.Group):
    """A group that imports a command's module only when the command is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List commands in the order in which a user needs them, not alphabetically."""
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that is named, or suggest the one that was probably meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], (*COMMANDS, "--help", "--version"), n=1)
            hint = f" Did you mean {close[0]}?" if close else f" Commands: {', '.join(COMMANDS)}"
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the click command from the module of the same name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f".{cmd_name}", __package__), cmd_name)
        return command


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gradosr")
def cli() -> None:
    """Find what an image classifier has never seen, in archives of any size.

    A job is a few flags, or a YAML file (`gradosr init` writes one), of which --set KEY=VALUE changes a field. Data is
    printed on stdout, messages on stderr.

    Exit codes: 0 done, 1 failed (run it again to continue), 2 usage or config, 4 input or credentials, 5 finished with
    more bad images or quarantined shards than the job allows, 6 a gate of a screening tripped, 7 the same run is
    already active, 130 or 143 interrupted (run it again to continue).
    """


class Place(click.Path):
    """The type of a path or URI, which shells complete as they complete a file."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        """Refuse what nobody can mean; `--out "$OUT"` without OUT would else be the working directory."""
        from gradosr.config.uris import fault_of

        if fault := fault_of(os.fspath(value)):
            self.fail(fault, param, ctx)
        return super().convert(value, param, ctx)


PLACE = Place()
config_argument = click.argument("config", type=PLACE)
json_flag = click.option("--json", "as_json", is_flag=True, help="Print the facts as one JSON document on stdout.")
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a config field; repeatable; values are YAML."
)

print_config_option = click.option(
    "--print-config", "print_only", is_flag=True, help="Print the whole config, defaults included, and do nothing."
)

labelled_runs = click.option(
    "--run",
    "runs",
    type=PLACE,
    multiple=True,
    required=True,
    metavar="RESULTS",
    help="Results of `gradosr score` with signals, whose images are labelled; repeatable.",
)

address_option = click.option(
    "--address",
    metavar="URL",
    help="Job server of the Ray cluster: http://HEAD:8265. Default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, if set.",
)


def print_config(job: Any) -> None:
    """Print a job's settings as a config file that is read back as the same job."""
    from gradosr.config.settings import as_yaml

    click.echo(as_yaml(job.model_dump(mode="json")), nl=False)


def job_flags(command: F) -> F:
    """Add CONFIG, --set and --json to a command."""
    return config_argument(set_option(json_flag(command)))


def log_flags(command: F) -> F:
    """Add --log-interval and --log-format, which control a job's messages on stderr."""
    interval = click.option(
        "--log-interval",
        default=LOG_INTERVAL,
        show_default=True,
        metavar="SECONDS",
        type=click.FloatRange(min=0),
        help="Seconds between progress lines when stderr is not a terminal.",
    )
    form = click.option(
        "--log-format",
        default="text",
        show_default=True,
        type=click.Choice(["text", "json"]),
        callback=_remember_format,
        is_eager=True,
        help="json writes one object per line to stderr, errors included.",
    )
    return interval(form(command))


def _remember_format(context: click.Context, _option: click.Parameter, value: str) -> str:
    """Store the format for `run`, which reports errors after the command has ended."""
    context.ensure_object(dict)["log_format"] = value
    return value


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, print one line per fault on stderr, and return the exit code."""
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, _interrupt)
    flags: dict[str, str] = {}
    try:
        _check_platform()
        return int(cli(args=arguments, prog_name="gradosr", standalone_mode=False, obj=flags) or DONE)
    except click.ClickException as error:
        if not _as_json(flags):
            error.show()
            return USAGE
        message, code = error.format_message(), USAGE
    except (click.Abort, KeyboardInterrupt):
        message, code = "interrupted; the same command goes on from here", INTERRUPTED
    except Terminated:
        message, code = "terminated; the same command goes on from here", 143
    except BrokenPipeError:
        return FAILED
    except BaseException as error:  # a panic of Rust is no Exception
        from gradosr.errors import GradosrError, machine_fault

        told = error if isinstance(error, GradosrError) else machine_fault(error)
        if told is None:
            raise
        message, code = str(told), _exit_code(told)
    _say(message, code, as_json=_as_json(flags))
    return code


def _check_platform() -> None:
    """Raise ConfigError on a platform that nothing here was tried on."""
    try:
        import fcntl  # noqa: F401 - which every Unix has
    except ImportError as error:
        from gradosr.errors import ConfigError

        raise ConfigError("gradosr runs on Linux and macOS; on Windows, run it in WSL 2") from error


def _exit_code(error: BaseException) -> int:
    from gradosr.errors import ConfigError, InputError, RunActive

    codes = ((ConfigError, USAGE), (InputError, INPUT), (RunActive, ACTIVE))
    return next((code for kind, code in codes if isinstance(error, kind)), FAILED)


def _say(message: str, code: int, *, as_json: bool) -> None:
    from gradosr.text import log_line, printable

    for line in message.splitlines():
        told = log_line("error", line, "error", exit_code=code) if as_json else f"gradosr: {printable(line)}"
        click.echo(told, err=True)


def _as_json(flags: Mapping[str, str]) -> bool:
    return flags.get("log_format") == "json"


@contextmanager
def drained() -> Iterator[threading.Event]:
    """Let the first SIGTERM set the event instead of ending the command; a second one ends it."""
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            _terminate(number, frame)
        stop.set()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: FrameType | None) -> None:
    if not _postpone(number, frame):
        raise Terminated


def _interrupt(number: int, frame: FrameType | None) -> None:
    if not _postpone(number, frame):
        raise KeyboardInterrupt


def _postpone(number: int, frame: FrameType | None) -> bool:
    """Send a signal that arrives during an import once more a little later, and tell whether that was so.

    Libraries catch everything while they are imported: torch goes on without numpy if an exception ends numpy's import,
    and the command goes on as if nobody had asked it to end.
    """
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    if frame:
        again = threading.Timer(0.05, os.kill, (os.getpid(), number))
        again.daemon = True
        again.start()
    return frame is not None


def main() -> None:
    """Run as the console script."""
    code = run()
    if code:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> None:
    """End the process at once if threads are left, which wait for a store that does not answer; Python waits for them.

    All of an ended command's own work is closed by now.
    """
    main = threading.main_thread()
    if any(thread is not main and not thread.daemon for thread in threading.enumerate()):
        with suppress(OSError):  # nobody reads them any longer
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
