"""Completion: what gradosr tells a shell, and what a shell makes of it when somebody presses Tab."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from gradosr.jobs import cli

DOCUMENTED = Path(__file__).parent.parent / "docs" / "how-to" / "config.md"
COMMAND = Path(sys.executable).with_name("gradosr")
SHELLS = ("bash", "zsh", "fish")
NO_PLACES = {
    *("address", "arch", "as_class", "classes", "cron", "image", "job", "known", "name", "overrides", "size"),
    *("timezone", "trust", "who"),
}
"""Parameters that take any text, but for paths and URIs."""


def parameters(command: click.Command) -> Iterator[tuple[str, click.Parameter]]:
    """Yield every parameter of a command and those below it, each with the command's name."""
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            below = command.get_command(click.Context(command), name)
            assert below
            yield from parameters(below)
    for one in command.params:
        yield str(command.name), one


def test_every_path_is_completed() -> None:
    texts = [(name, one.name) for name, one in parameters(cli.cli) if isinstance(one.type, click.types.StringParamType)]
    assert [one for one in texts if one[1] not in NO_PLACES] == []


def test_every_flag_has_a_help_text() -> None:
    for name in ("fit", "score", "init", "audit"):
        command = cli.cli.get_command(None, name)  # type: ignore[arg-type]
        assert command
        assert all(getattr(one, "help", "") for one in command.params if one.param_type_name == "option")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("gradosr sc", {"score", "screen", "schedule", "schema"}), ("gradosr fit --we", {"--weights"}),
     ("gradosr schema p", {"protocol"})],
)  # fmt: skip
@pytest.mark.parametrize("shell", SHELLS)
def test_commands_flags_and_values_are_completed(shell: str, words: str, wanted: set[str]) -> None:
    last = words.rpartition(" ")[2]
    place = {"COMP_CWORD": last} if shell == "fish" else {"COMP_CWORD": str(words.count(" "))}
    environment = {**os.environ, "_GRADOSR_COMPLETE": f"{shell}_complete", "COMP_WORDS": words, **place}
    found = subprocess.run([COMMAND], env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    assert wanted <= {word for line in found.splitlines() for word in line.replace("\t", ",").split(",")}


def set_up(shell: str, home: Path) -> list[str]:
    """Write the shell's settings as documented, and have the words of a line written into `told` once Enter is pressed.

    Return the command that starts the shell.
    """
    blocks = re.findall(r"```text\n(.*?)```", DOCUMENTED.read_text(encoding="utf-8"), re.DOTALL)
    (lines,) = [one for one in blocks if "_GRADOSR_COMPLETE" in one]
    own = "\n".join(line for line in lines.splitlines() if shell in line or (shell == "zsh" and "compinit" in line))
    if shell == "fish":
        folder = home / ".config" / "fish"
        (folder / "completions").mkdir(parents=True)
        (folder / "completions" / "gradosr.fish").write_text(f"{own}\n")
        seen = 'string replace "gradosr " "" -- $argv > told.part; mv told.part told'
        (folder / "config.fish").write_text(f"function tell --on-event fish_preexec; {seen}; end\n")
        return ["fish", "--interactive"]
    own += "\ngradosr() { printf '%s\\n' \"$@\" > told.part; mv told.part told; }\n"
    (home / f".{shell}rc").write_text(own)
    return ["bash", "--rcfile", str(home / ".bashrc"), "-i"] if shell == "bash" else ["zsh", "-i"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of forkpty:DeprecationWarning")  # it executes at once
@pytest.mark.parametrize("shell", SHELLS)
def test_tab_completes_commands_files_and_flags(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed here")  # few machines have all three; CI installs them
    (tmp_path / "photographs").mkdir()
    (tmp_path / "animals.bundle").touch()
    command = set_up(shell, tmp_path)
    folders = os.pathsep.join([str(COMMAND.parent), os.environ["PATH"]])
    environment = {**os.environ, "HOME": str(tmp_path), "ZDOTDIR": str(tmp_path), "PATH": folders, "TERM": "xterm",
                   "XDG_CONFIG_HOME": str(tmp_path / ".config"), "XDG_DATA_HOME": str(tmp_path / ".local")}  # fmt: skip
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvpe(command[0], command, environment)
    try:
        os.write(terminal, b"gradosr sco\tani\tphotogr\t --print-c\t\r")
        until, shown = time.monotonic() + 240, b""
        while not (tmp_path / "told").exists():
            if select.select([terminal], [], [], 0.05)[0]:
                shown += os.read(terminal, 4096)
            assert time.monotonic() < until, shown
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)
    words = (tmp_path / "told").read_text().split()
    assert [word.rstrip("/") for word in words] == ["score", "animals.bundle", "photographs", "--print-config"]
