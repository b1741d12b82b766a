"""Schedules: what is refused, when they fire, and that the real tools take what is rendered."""

import json
import os
import re
import shlex
import shutil
import subprocess
import zoneinfo
from datetime import datetime, timedelta, timezone
from itertools import islice
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from gradosr.jobs.cli import run
from tiny import make_bundle, write_archive

from gradosr.errors import ConfigError, InputError
from gradosr.schedules import TARGETS, make_schedule, name_of, next_times, warnings, zones
from gradosr.schedules.cron import ClockChanges, Cron, firings
from gradosr.schedules.zones import zone_of
from gradosr.store import Store

ROOT = Path(__file__).parents[2]
BERLIN = ZoneInfo("Europe/Berlin")
NIGHTLY = "30 2 * * *"
NOW = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "screen.yaml"
    path.write_text(
        "{bundle: s3://m/b/, input: {kind: tar, uri: s3://a/b/}, output: s3://r/o/, gates: {bad_images: 0}}"
    )
    return str(path)


@pytest.fixture(autouse=True)
def berlin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This system's clock is Berlin's."""
    files = [Path(folder) / "Europe" / "Berlin" for folder in zoneinfo.TZPATH]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        pytest.skip("this system has no time zone data")  # slim containers: Python then uses the tzdata package
    monkeypatch.setattr(zones, "LOCALTIME", found)


def rendered(config: str, target: str, cron: str = NIGHTLY, zone: str = "Europe/Berlin", **more: Any) -> dict[str, str]:
    return dict(TARGETS[target].render(make_schedule(config, cron, zone, target, **more), NOW))


def times(cron: str, target: str, after: str, count: int = 3) -> list[str]:
    """UTC, minutes."""
    parsed = Cron.parse(cron)
    found = firings(parsed, BERLIN, TARGETS[target].changes(parsed), datetime.fromisoformat(after + "+00:00"))
    return [f"{one.astimezone(timezone.utc):%m-%d %H:%M}" for one in islice(found, count)]


# The expression


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "found 0"),
        ("@daily", "shorthands"),
        ("30 2 * *", "found 4"),
        ("30 2 * * * root", "found 6"),
        ("30 2 * * *\n* * * * *", "found 10"),
        ("60 2 * * *", "minute '60': expected 0 to 59"),
        ("30 24 * * *", "hour '24': expected 0 to 23"),
        ("30 2 0 * *", "day of month '0': expected 1 to 31"),
        ("30 2 * 13 *", "month '13': expected 1 to 12"),
        ("30 2 * foo *", "month 'foo': expected 1 to 12 or jan to dec"),
        ("30 2 * * 8", "day of week '8'"),
        ("30 2 L * *", "day of month 'L': expected five fields"),
        ("30 2 * * 5#3", "expected five fields"),
        ("30 2 ? * *", "expected five fields"),
        ("*/0 2 * * *", "a step of 0"),
        ("5/15 2 * * *", "disagree on a step of one number"),
        ("50-10 2 * * *", "runs backwards"),
        ("30 2 */2 * 1", "disagree on a step of \\*"),
        ("0 0 30 2 *", "never fires"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        ("\u0663 2 * * *", "expected five fields"),
        ("-1 2 * * *", "expected five fields"),
    ],
)
def test_what_is_no_schedule_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cron.parse(text)


def test_every_fault_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        make_schedule(str(tmp_path / "none.yaml"), "61 25 * * *", "Europe/Berlim", "systemd")
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "Europe/Berlin" in lines[2]
    assert lines[3].endswith("none.yaml: no such file")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("30 2 * * *", "30 2 * * *"),
        ("  */15   0-6  1,15 * *", "*/15 0-6 1,15 * *"),
        ("0 2 * JAN-mar Mon-Fri", "0 2 * 1,2,3 1,2,3,4,5"),
        ("0 2 * * 5-7", "0 2 * * 0,5,6"),  # Kubernetes has no day 7
        ("0 2 * * 7", "0 2 * * 0"),
        ("0 0 29 2 *", "0 0 29 2 *"),
        ("0 0 31 2 1", "0 0 31 2 1"),  # Mondays in February: either day field will do
    ],
)
def test_it_is_written_in_numbers_that_every_cron_takes(text: str, written: str) -> None:
    assert str(Cron.parse(text)) == written


def test_either_day_field_will_do_when_both_are_given() -> None:
    days = ["11-13", "11-20", "11-27", "12-04"]
    assert times("0 12 13 * 5", "crontab", "2026-11-12T00:00", 4) == [f"{day} 11:00" for day in days]
    assert times("0 12 31 * *", "crontab", "2026-11-12T00:00", 2) == ["12-31 11:00", "01-31 11:00"]


def test_a_leap_day_is_waited_for() -> None:
    found = firings(Cron.parse("0 0 29 2 *"), BERLIN, ClockChanges(late=False, twice=False), NOW)
    assert [one.year for one in islice(found, 2)] == [2028, 2032]


# Clocks that change: in 2027 Berlin has no 02:00 to 03:00 on 28 March, and two on 31 October


@pytest.mark.parametrize(
    ("target", "spring", "autumn"),
    [
        ("crontab", ["03-27 01:30", "03-28 01:00", "03-29 00:30"], ["10-30 00:30", "10-31 00:30", "11-01 01:30"]),
        ("systemd", ["03-27 01:30", "03-29 00:30", "03-30 00:30"], ["10-30 00:30", "10-31 00:30", "11-01 01:30"]),
        ("k8s-cronjob", ["03-27 01:30", "03-29 00:30", "03-30 00:30"], ["10-30 00:30", "10-31 00:30", "10-31 01:30"]),
    ],
)
def test_a_change_of_the_clock(target: str, spring: list[str], autumn: list[str]) -> None:
    assert times(NIGHTLY, target, "2027-03-26T12:00") == spring
    assert times(NIGHTLY, target, "2027-10-29T12:00") == autumn


def test_a_wildcard_hour_goes_by_elapsed_time_in_a_crontab() -> None:
    assert times("30 * * * *", "crontab", "2027-10-30T23:45", 3) == ["10-31 00:30", "10-31 01:30", "10-31 02:30"]
    assert times("30 * * * *", "crontab", "2027-03-27T23:45", 3) == ["03-28 00:30", "03-28 01:30", "03-28 02:30"]


def test_a_clock_change_that_meets_the_schedule_is_told(config: str) -> None:
    told = {
        target: warnings(make_schedule(config, NIGHTLY, "Europe/Berlin", target), target, NOW) for target in TARGETS
    }
    assert told["crontab"] == [
        "2027-03-28 02:30 is left out by the clock of Europe/Berlin: crontab runs when the gap is over"
    ]
    assert "does not run that day" in told["systemd"][0]
    assert [line[:16] for line in told["k8s-cronjob"]] == ["2027-03-28 02:30", "2027-10-31 02:30"]
    assert not warnings(make_schedule(config, "30 4 * * *", "Europe/Berlin", "systemd"), "systemd", NOW)


def test_the_next_five_times(config: str) -> None:
    found = next_times(make_schedule(config, NIGHTLY, "Asia/Kathmandu", "systemd"), "systemd", NOW)
    assert [one.isoformat() for one in found[:2]] == ["2026-11-23T02:30:00+05:45", "2026-11-24T02:30:00+05:45"]
    assert len(found) == 5


# Time zones


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("europe/berlin", "Europe/Berlin"),
        ("Berlin", "Europe/Berlin"),
        ("Europe/Berlim", "Europe/Berlin"),
        ("New York", "America/New_York"),
    ],
)
def test_a_zone_that_there_is_not_is_refused_with_near_misses(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean .*{meant}"):
        zone_of(wrong)


@pytest.mark.parametrize("wrong", ["", "Nowhere/Atall", "../../etc/passwd", "/etc/localtime", "Europe", "x\n"])
def test_what_is_no_zone_at_all(wrong: str) -> None:
    with pytest.raises(ConfigError, match="no such time zone"):
        zone_of(wrong)


def test_a_crontab_has_the_systems_zone_alone(config: str) -> None:
    assert make_schedule(config, NIGHTLY, None, "crontab").zone.key == "Europe/Berlin"
    assert rendered(config, "crontab", zone="Europe/Berlin")
    assert rendered(config, "crontab", zone="Europe/Stockholm")  # the same clock by another name
    with pytest.raises(ConfigError, match="which is Europe/Berlin"):
        rendered(config, "crontab", zone="America/New_York")
    assert make_schedule(config, NIGHTLY, None, "k8s-cronjob").zone.key == "Etc/UTC"


# What is rendered


def odd_config(tmp_path: Path) -> str:
    folder = tmp_path / 'it\'s 100% "odd" $HOME;x'
    folder.mkdir()
    (folder / "a b.yaml").write_text("")
    return str(folder / "a b.yaml")


def test_a_crontab_line_runs_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = odd_config(tmp_path)
    monkeypatch.chdir(Path(path).parent)
    lines = rendered(path, "crontab")["crontab"].splitlines()
    (line,) = [line for line in lines if not line.startswith("#")]
    command = line.split(maxsplit=5)[5]
    assert not re.search(r"(?<!\\)%", command)  # cron would make it a new line
    shown = subprocess.run(
        ["/bin/sh", "-c", command.replace(r"\%", "%").replace(" && ", " && pwd && printf '%s\\n' ", 1)],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    assert shown[0] == str(Path(path).parent)
    assert Path(shown[1]).is_absolute()
    assert shown[-2:] == ["screen", path]


def _usage(program: str) -> str:
    return subprocess.run([program, "-h"], capture_output=True, text=True, check=False).stderr


def checks_crontabs() -> bool:
    """Whether this is a crontab that checks a file without taking it (Debian's)."""
    crontab = shutil.which("crontab")
    return crontab is not None and "dry run" in _usage(crontab)


@pytest.mark.skipif(not checks_crontabs(), reason="no crontab here that checks a file without taking it")
def test_crontab_takes_the_block(tmp_path: Path, config: str) -> None:
    for cron, path in ((NIGHTLY, config), ("*/20 1-3 1,15 jan-mar 1-5", odd_config(tmp_path))):
        (tmp_path / "table").write_text(rendered(path, "crontab", cron=cron)["crontab"])
        subprocess.run(["crontab", "-n", str(tmp_path / "table")], check=True, capture_output=True)
    (tmp_path / "table").write_text("30 25 * * * x\n")
    assert subprocess.run(["crontab", "-n", str(tmp_path / "table")], check=False, capture_output=True).returncode


@pytest.mark.parametrize("letter", ["\\", "\n", "\x07", "\u202e"])
def test_paths_that_a_schedule_cannot_hold(tmp_path: Path, letter: str) -> None:
    path = tmp_path / f"a{letter}b.yaml"
    path.write_text("")
    with pytest.raises(ConfigError):
        rendered(str(path), "crontab")


def test_a_crontab_line_has_a_bound(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 250) / ("e" * 250) / ("f" * 250) / ("g" * 250)
    deep.mkdir(parents=True)
    (deep / "c.yaml").write_text("")
    with pytest.raises(ConfigError, match="998 bytes"):
        rendered(str(deep / "c.yaml"), "crontab")


systemd_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")


@systemd_analyze
@pytest.mark.parametrize("odd", [False, True])
def test_systemd_takes_the_units(tmp_path: Path, config: str, odd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    path = odd_config(tmp_path) if odd else config
    monkeypatch.chdir(Path(path).parent)
    units = rendered(path, "systemd", cron="*/20 1-3 1,15 * 1-5")
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in units)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    complaints = [line for line in checked.stderr.splitlines() if str(tmp_path) in line or name_of(path) in line]
    assert not complaints, checked.stderr
    assert units[f"{name_of(path)}.timer"].count("OnCalendar=") == 2  # either day field will do
    assert "Persistent=true" in units[f"{name_of(path)}.timer"]


@systemd_analyze
@pytest.mark.parametrize("cron", [NIGHTLY, "*/30 1-3 * * *", "15 2,3 * * 0", "0 5 13 * 5", "0 0 29 2 *"])
@pytest.mark.parametrize("after", ["2026-11-22T12:00", "2027-03-27T12:00", "2027-10-30T12:00"])
def test_the_times_are_those_that_systemd_finds(config: str, cron: str, after: str) -> None:
    timer = rendered(config, "systemd", cron=cron)[f"{name_of(config)}.timer"]
    calendars = re.findall(r"OnCalendar=(.*)", timer)
    base = datetime.fromisoformat(after + "+00:00")
    found = set()
    for calendar in calendars:
        command = [
            "systemd-analyze",
            "calendar",
            f"--base-time={base:%Y-%m-%d %H:%M:%S} UTC",
            "--iterations=6",
            calendar,
        ]
        shown = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "TZ": "UTC", "LC_ALL": "C"}
        ).stdout
        found |= set(re.findall(r"(?:elapse|Iter\. #\d): \w+ (\S+ \S+) UTC", shown))
    ours = next_times(make_schedule(config, cron, "Europe/Berlin", "systemd"), "systemd", base)
    assert sorted(found)[:5] == [f"{one.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}" for one in ours]


def manifest(name: str, kind: str) -> dict[str, Any]:
    documents = yaml.safe_load_all((ROOT / "cluster" / "kuberay" / name).read_text(encoding="utf-8"))
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def test_a_cronjob_has_the_shape_of_the_clusters_own(config: str) -> None:
    (document,) = (yaml.safe_load(text) for text in rendered(config, "k8s-cronjob").values())
    own = manifest("cronjob.yaml", "CronJob")
    spec = document["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"]) == (NIGHTLY, "Europe/Berlin", "Forbid")
    other = dict.fromkeys(("jobTemplate", "schedule", "timeZone"))
    assert {**spec, **other} == {**own["spec"], **other}
    ours, theirs = (one["jobTemplate"]["spec"]["template"]["spec"] for one in (spec, own["spec"]))
    assert {**ours, "containers": 0} == {**theirs, "containers": 0}
    (container,), (submit,) = ours["containers"], theirs["containers"]
    assert container["command"] == ["gradosr", "screen", "/etc/gradosr/screen.yaml"]
    assert container["image"] == submit["image"]
    assert container["volumeMounts"] == submit["volumeMounts"]
    (rule,) = spec["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    assert {2, 4, 5, 6, 7, 143} == set(rule["onExitCodes"]["values"])


def test_a_raycronjob_has_the_shape_of_the_clusters_own(config: str) -> None:
    (document,) = (yaml.safe_load(text) for text in rendered(config, "ray-cronjob").values())
    own = manifest("raycronjob.yaml", "RayCronJob")
    assert set(document["spec"]) == {"schedule", "timeZone", "suspend", "jobTemplate"}
    changed = {"entrypoint": "gradosr screen /etc/gradosr/screen.yaml", "jobId": document["metadata"]["name"]}
    assert document["spec"]["jobTemplate"] == {**own["spec"]["jobTemplate"], **changed}
    assert len(document["metadata"]["name"]) <= 36


def test_what_yaml_could_misread_is_quoted(config: str) -> None:
    (text,) = rendered(config, "k8s-cronjob", cron="*/5 * * * *", image='x: "y" # z').values()
    document = yaml.safe_load(text)
    assert document["spec"]["schedule"] == "*/5 * * * *"
    (container,) = document["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == 'x: "y" # z'


def test_a_config_that_no_configmap_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ConfigMap"):
        rendered(odd_config(tmp_path), "k8s-cronjob")


def test_nothing_of_the_environment_is_rendered(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tops3cret")
    for target in TARGETS:
        assert "tops3cret" not in json.dumps(rendered(config, target))


def test_names(config: str) -> None:
    assert re.fullmatch(r"gradosr-screen-[0-9a-f]{8}", name_of(config))
    assert name_of(config) == name_of(os.path.relpath(config))
    assert len(name_of("/x/" + "A very long name " * 9 + ".yaml")) <= 36
    assert name_of("/x/....yaml").startswith("gradosr-")


# Code of the user's own


def commands(target: str, texts: dict[str, str], name: str) -> str:
    """The rendered command as a line for a shell, as cron and systemd read it."""
    if target == "crontab":
        (line,) = [line for line in texts["crontab"].splitlines() if not line.startswith("#")]
        return line.split(maxsplit=5)[5].replace(r"\%", "%")
    unit = texts[f"{name}.service"].replace("%%", "%")
    folder, code, command = (
        " ".join(re.findall(rf"^{key}=(.*)$", unit, re.MULTILINE))
        for key in ("WorkingDirectory", "Environment", "ExecStart")
    )
    return f"cd {shlex.quote(folder)} && env {code} {command}"


@pytest.fixture
def own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A screening whose classifier is code in a folder that PYTHONPATH alone names, which needs code of another one."""
    folder = tmp_path / "own 100% code"
    folder.mkdir()
    (folder / "night_net.py").write_text(
        "from tiny_net import Tiny\n\n\ndef make(num_classes):\n    return Tiny(num_classes)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT / "tests")]))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "night.yaml"
    document = {
        "bundle": f"{tmp_path}/bundle", "input": {"kind": "tar", "uri": f"{tmp_path}/archive/"}, "workers": 1,
        "output": f"{tmp_path}/results", "trust": ["night_net:make"], "gates": {"bad_images": 0}, "device": "cpu",
    }  # fmt: skip
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_the_folders_of_trusted_code_are_rendered_and_no_others(
    own_code: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted = f"{Path(own_code).parent}/own 100"
    for target in ("crontab", "systemd"):
        assert schedule(own_code, target=target) == 0
        assert trusted in capsys.readouterr().out
        assert "PYTHONPATH" not in json.dumps(rendered(config, target))
        installed = make_schedule(config, NIGHTLY, None, target, trust=["torch.nn:Module"])
        assert installed.code == ()


def test_trusted_code_that_is_not_found_is_told_now(config: str) -> None:
    with pytest.raises(ConfigError, match=r"^trust: nowhere.nets:make: no nowhere is found here; .*PYTHONPATH"):
        make_schedule(config, NIGHTLY, None, "systemd", trust=["nowhere.nets:make"])
    assert make_schedule(config, NIGHTLY, None, "k8s-cronjob", trust=["nowhere.nets:make"]).code == ()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("target", ["crontab", "systemd"])
def test_a_night_with_code_of_ones_own_runs_as_it_is_rendered(own_code: str, tmp_path: Path, target: str) -> None:
    write_archive(Store(), f"{tmp_path}/archive", shards=1)
    make_bundle(Store(), f"{tmp_path}/bundle", arch="night_net:make")
    texts = dict(TARGETS[target].render(make_schedule(own_code, NIGHTLY, None, target, trust=["night_net:make"]), NOW))
    bare = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "RAY_AUTH_MODE": "disabled"}
    ran = subprocess.run(
        ["/bin/sh", "-c", commands(target, texts, name_of(own_code))],
        cwd="/", env=bare, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "6 new images" in ran.stderr
    assert len(list((tmp_path / "results" / "parts").iterdir())) == 1


# Installing: the commands are stand-ins that keep what they are given, so that no test touches a person's own


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A crontab and a systemctl; what they keep is in the folder."""
    folder = tmp_path / "bin"
    folder.mkdir()
    table, log = shlex.quote(str(folder / "table")), shlex.quote(str(folder / "log"))
    scripts = {
        "crontab": f'[ "$1" = - ] && exec cat > {table}\n[ -e {table} ] && exec cat {table}\n'
        "echo no crontab for me >&2; exit 1",
        "systemctl": f'echo "$@" >> {log}',
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    return folder


def schedule(config: str, *more: str, target: str = "crontab", cron: str = NIGHTLY) -> int:
    return run(["schedule", config, "--cron", cron, "--as", target, *more])


@pytest.mark.parametrize("before", [None, "", "MAILTO=me\n0 1 * * * other\n", "0 1 * * * without a newline"])
def test_a_crontab_is_left_as_it_was(config: str, tools: Path, before: str | None) -> None:
    if before is not None:
        (tools / "table").write_text(before)
    assert schedule(config, "--install") == 0
    once = (tools / "table").read_text()
    assert once.startswith(before or "")
    assert schedule(config, "--install") == 0
    assert (tools / "table").read_text() == once
    other = Path(config).with_name("other.yaml")
    other.write_text(Path(config).read_text())
    assert schedule(str(other), "--install") == 0
    assert schedule(config, "--install", cron="0 4 * * *") == 0
    changed = (tools / "table").read_text()
    assert changed.count("# BEGIN gradosr") == 2
    assert "30 2 * * *" in changed.split("# BEGIN gradosr gradosr-other")[1]
    assert "0 4 * * *" in changed.split("# BEGIN gradosr gradosr-other")[0]
    assert run(["schedule", str(other), "--as", "crontab", "--remove"]) == 0
    assert run(["schedule", config, "--as", "crontab", "--remove"]) == 0
    assert run(["schedule", config, "--as", "crontab", "--remove"]) == 0
    left = (tools / "table").read_text()
    assert left == (before or "") + ("\n" if before and not before.endswith("\n") else "")


def test_a_block_without_an_end_is_not_guessed_at(config: str, tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tools / "table").write_text(f"# BEGIN gradosr {name_of(config)}\n0 1 * * * mine\n")
    assert schedule(config, "--install") == 4
    assert "no end mark" in capsys.readouterr().err
    assert "mine" in (tools / "table").read_text()


def test_units_are_installed_and_removed(config: str, tools: Path, tmp_path: Path) -> None:
    name, folder = name_of(config), tmp_path / "xdg" / "systemd" / "user"
    assert schedule(config, "--install", target="systemd") == 0
    assert schedule(config, "--install", target="systemd") == 0
    assert {path.name for path in folder.iterdir()} == {f"{name}.service", f"{name}.timer"}
    assert run(["schedule", config, "--as", "systemd", "--remove"]) == 0
    assert not list(folder.iterdir())
    assert run(["schedule", config, "--as", "systemd", "--remove"]) == 0
    installed = ["--user show-environment", "--user daemon-reload", f"--user enable --now {name}.timer"]
    removed = [f"--user disable --now {name}.timer", "--user daemon-reload"]
    assert (tools / "log").read_text().splitlines() == installed * 2 + removed


@pytest.mark.parametrize("target", ["crontab", "systemd"])
def test_a_tool_that_fails_or_is_missing_is_told(
    config: str, tools: Path, target: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = "crontab" if target == "crontab" else "systemctl"
    (tools / tool).write_text("#!/bin/sh\necho it is forbidden >&2; exit 3\n")
    assert schedule(config, "--install", target=target) == 4
    assert "it is forbidden" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nonexistent")
    assert schedule(config, "--install", target=target) == 4
    assert "no such command here" in capsys.readouterr().err
    with pytest.raises(InputError):
        TARGETS[target].install({"x": ""}, "x")  # type: ignore[misc]


# The command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--as", "systemd"], "--cron is required"),
        (["--as", "k8s-cronjob", "--cron", NIGHTLY, "--install"], "nothing to install from here"),
        (["--as", "ray-cronjob", "--remove"], "nothing to install from here"),
        (["--as", "crontab", "--cron", "0 0 30 2 *"], "never fires"),
        (["--as", "crontab", "--cron", NIGHTLY, "--timezone", "UTC"], "the system's time zone"),
        (["--as", "at", "--cron", NIGHTLY], "is not one of"),
    ],
)
def test_bad_input_is_told(config: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schedule", config, *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("target", ["k8s-cronjob", "ray-cronjob"])
def test_paths_of_this_machine_are_refused_where_pods_run(
    tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "local.yaml"
    path.write_text("{bundle: b/, input: {kind: tar, uri: s3://a/b/}, output: r, gates: {bad_images: 0}}")
    assert run(["schedule", str(path), "--cron", NIGHTLY, "--as", target]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(": ")[1] for line in err.splitlines()] == ["bundle", "output"]
    assert "the nodes of a cluster see s3:// and gs:// only" in err
    assert run(["schedule", str(path), "--cron", NIGHTLY, "--as", "crontab"]) == 0


def test_stdout_is_the_schedule_and_stderr_the_times(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert schedule(config) == 0
    out, err = capsys.readouterr()
    assert out == rendered(config, "crontab")["crontab"]
    assert "exit code 7" in " ".join(out.split())
    assert len(re.findall(r"^gradosr:   \w{3} \d{4}-\d\d-\d\d 02:30 CES?T \(UTC\+0[12]00\)$", err, re.MULTILINE)) == 5
    assert schedule(config, "--json", target="systemd") == 0
    facts = json.loads(capsys.readouterr().out)
    assert set(facts["rendered"]) == {f"{name_of(config)}.service", f"{name_of(config)}.timer"}
    assert len(facts["next"]) == 5
    assert all(
        datetime.fromisoformat(one).utcoffset() in (timedelta(hours=1), timedelta(hours=2)) for one in facts["next"]
    )
