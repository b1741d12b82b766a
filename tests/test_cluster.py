"""cluster/ holds together: Ray's own checks where they work offline, and the rules that a schema does not know."""

import copy
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from gradosr.jobs.cli import cli
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

from gradosr.config import ScoreJob
from gradosr.config.settings import load_settings

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
README = (CLUSTER / "README.md").read_text(encoding="utf-8")
DOCKERFILE = (CLUSTER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
AWS: dict[str, Any] = yaml.safe_load((CLUSTER / "aws.yaml").read_text(encoding="utf-8"))


def manifest(name: str, kind: str) -> dict[str, Any]:
    documents = list(yaml.safe_load_all((KUBERAY / name).read_text(encoding="utf-8")))
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


CONFIG = manifest("config.yaml", "ConfigMap")
ACCOUNT = manifest("config.yaml", "ServiceAccount")
RAYCLUSTER = manifest("raycluster.yaml", "RayCluster")
RAYJOB = manifest("rayjob.yaml", "RayJob")
RAYCRONJOB = manifest("raycronjob.yaml", "RayCronJob")
CRONJOB = manifest("cronjob.yaml", "CronJob")
CLUSTERS = {
    "rayjob": RAYJOB["spec"]["rayClusterSpec"],
    "raycronjob": RAYCRONJOB["spec"]["jobTemplate"]["rayClusterSpec"],
    "raycluster": RAYCLUSTER["spec"],
}
SPEC = CLUSTERS["raycluster"]
HEAD = SPEC["headGroupSpec"]["template"]["spec"]
GROUPS = SPEC["workerGroupSpecs"]
SUBMITTER = CRONJOB["spec"]["jobTemplate"]["spec"]["template"]["spec"]
PODS = [HEAD, *(group["template"]["spec"] for group in GROUPS), SUBMITTER]


@pytest.fixture
def job() -> ScoreJob:
    """Return the text of the ConfigMap."""
    return load_settings(ScoreJob, CONFIG["data"]["score.yaml"], "config.yaml")


def locked(package: str) -> str:
    """The lock's version of a package; of the newest Python where they differ, empty where it is not there."""
    return next(reversed(re.findall(rf"^{re.escape(package)}==(\S+)", LOCK, re.MULTILINE)), "")


def quantity(text: str) -> float:
    """A Kubernetes quantity as cores or bytes."""
    number, unit = re.fullmatch(r"([\d.]+)(m|[KMGT]i)?", text).groups()  # type: ignore[union-attr]
    return float(number) * {None: 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}[unit]


def assert_parses(command: list[str]) -> str:
    """The command line is one that gradosr takes; nothing of it is run."""
    assert command[0] == "gradosr"
    found = cli.get_command(None, command[1])  # type: ignore[arg-type]
    assert found is not None, command
    found.make_context(command[1], command[2:])  # raises on unknown options and missing arguments
    return command[1]


def steps(instruction: str) -> list[str]:
    """Return what follows an instruction of the Dockerfile, each time it stands there."""
    return [" ".join(one.split()) for one in re.findall(rf"^{instruction} (.*)$", DOCKERFILE, re.MULTILINE)]


COPIED = {name for step in steps("COPY") if not step.startswith("--from") for name in step.split()[:-1]}


# AWS


def prepared(document: dict[str, Any]) -> dict[str, Any]:
    """Return the config as `ray up` sees it, after its own defaults and its schema, which refuses unknown keys."""
    config = prepare_config(copy.deepcopy(document))
    validate_config(config)
    return config


def test_ray_takes_the_aws_cluster() -> None:
    config = prepared(AWS)
    limits = {name: node["max_workers"] for name, node in config["available_node_types"].items()}
    assert limits.pop(config["head_node_type"]) == 0
    assert sum(limits.values()) == config["max_workers"]
    with pytest.raises(ValidationError, match="max_wrokers"):
        prepared({**AWS, "max_wrokers": 1})


def launched(workers: int) -> dict[str, int]:
    """Node type -> nodes that Ray's autoscaler starts for so many workers of one GPU."""
    config = AutoscalingConfig(copy.deepcopy(AWS), skip_content_hash=True)
    wanted = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make({"CPU": 7, "GPU": 1})] * workers)
    request = SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=config.get_node_type_configs(),
        max_num_nodes=config.get_max_num_nodes(),
        resource_requests=wanted,
    )
    return {one.instance_type: one.count for one in ResourceDemandScheduler().schedule(request).to_launch}


@pytest.mark.parametrize(
    ("workers", "nodes"),
    [(1, {"gpu-spot": 1}), (8, {"gpu-spot": 8}), (10, {"gpu-spot": 8, "gpu-on-demand": 2})],
)
def test_spot_first_and_the_overflow_on_demand(workers: int, nodes: dict[str, int]) -> None:
    assert launched(workers) == nodes


def test_spot_and_on_demand_differ_in_the_market_alone() -> None:
    spot, on_demand = (AWS["available_node_types"][name]["node_config"] for name in ("gpu-spot", "gpu-on-demand"))
    assert spot == {**on_demand, "InstanceMarketOptions": {"MarketType": "spot"}}


def test_nodes_have_the_profiles_that_the_template_makes() -> None:
    resources = yaml.safe_load((CLUSTER / "aws-iam.yaml").read_text(encoding="utf-8"))["Resources"].values()
    made = {one["Properties"]["InstanceProfileName"] for one in resources if one["Type"].endswith("InstanceProfile")}
    used = {node["node_config"]["IamInstanceProfile"]["Name"] for node in AWS["available_node_types"].values()}
    assert made == used


@pytest.mark.slow
def test_a_wheel_can_be_built_from_what_nodes_get(tmp_path: Path) -> None:
    sources = {local for local in AWS["file_mounts"].values() if not local.startswith("~")}
    assert sources == COPIED
    for name in sources - {"requirements.lock"}:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert list((tmp_path / "dist").glob("gradosr-*.whl"))


def test_tokens_guard_the_aws_cluster() -> None:
    assert AWS["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command for command in AWS["setup_commands"])
    assert any("--dashboard-host=127.0.0.1" in command for command in AWS["head_start_ray_commands"])


# KubeRay


@pytest.mark.parametrize(
    ("document", "kind", "version"),
    [
        (RAYCLUSTER, "RayCluster", "ray.io/v1"),
        (RAYJOB, "RayJob", "ray.io/v1"),
        (RAYCRONJOB, "RayCronJob", "ray.io/v1"),
        (CRONJOB, "CronJob", "batch/v1"),
    ],
)
def test_kinds_and_names(document: dict[str, Any], kind: str, version: str) -> None:
    assert (document["kind"], document["apiVersion"]) == (kind, version)
    assert len(document["metadata"]["name"]) <= 36  # KubeRay adds to a RayCronJob's name, and labels end at 63


def test_the_three_clusters_are_one() -> None:
    assert CLUSTERS["rayjob"] == CLUSTERS["raycronjob"] == CLUSTERS["raycluster"]


def test_one_image_with_the_ray_that_the_manifest_names() -> None:
    (image,) = {container["image"] for pod in PODS for container in pod["containers"]}
    newest = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert newest
    assert image.endswith(f"/gradosr:{newest[1]}")
    assert f"--tag {image} " in DOCKERFILE
    assert image in README
    assert SPEC["rayVersion"] == locked("ray")
    assert f"ray[default]=={locked('ray')}" in README


def test_worker_groups_can_scale() -> None:
    assert SPEC["enableInTreeAutoscaling"] is True
    assert len({group["groupName"] for group in GROUPS}) == len(GROUPS)
    for group in GROUPS:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert SPEC["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("pod", PODS, ids=lambda pod: pod["containers"][0]["name"])
def test_pods_state_what_they_take(pod: dict[str, Any]) -> None:
    for container in pod["containers"]:
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    assert pod["serviceAccountName"] == ACCOUNT["metadata"]["name"]
    assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_job_fits_the_cluster(job: ScoreJob) -> None:
    (group,) = GROUPS
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    workers = job.workers
    assert workers.cpus <= quantity(limits["cpu"])
    assert workers.gpus <= quantity(limits["nvidia.com/gpu"])
    assert workers.min <= workers.max <= group["maxReplicas"]
    assert job.ray.address == "auto"
    assert job.ray.start_timeout >= 1200  # a node that starts and pulls the image takes its time


@pytest.mark.parametrize("spec", [RAYJOB["spec"], RAYCRONJOB["spec"]["jobTemplate"]], ids=["rayjob", "raycronjob"])
def test_a_stopped_job_has_the_time_to_drain(spec: dict[str, Any], job: ScoreJob) -> None:
    """The driver's drain ends before Ray kills it, that before the node gives up, and that before Kubernetes does."""
    stop_wait = float(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    for pod in (HEAD, *(group["template"]["spec"] for group in GROUPS)):
        (container,) = pod["containers"]
        environment = {one["name"]: one["value"] for one in container["env"]}
        node_wait = float(environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert job.drain_timeout < stop_wait < node_wait < pod["terminationGracePeriodSeconds"]
    assert spec["shutdownAfterJobFinishes"] is True


@pytest.mark.parametrize("spec", [RAYJOB["spec"], RAYCRONJOB["spec"]["jobTemplate"]], ids=["rayjob", "raycronjob"])
def test_a_run_outlives_its_log_connection(spec: dict[str, Any]) -> None:
    """KubeRay's submitter pod follows the log, and its end fails the RayJob whatever the job does; days are long."""
    assert spec["submissionMode"] == "HTTPMode"
    assert not {"submitterPodTemplate", "submitterConfig"} & set(spec)


def mounted(pod: dict[str, Any]) -> set[str]:
    """Paths of the files that a pod's first container sees of the ConfigMap."""
    volumes = {volume["name"] for volume in pod["volumes"] if volume["configMap"]["name"] == CONFIG["metadata"]["name"]}
    mounts = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"] if mount["name"] in volumes]
    return {f"{path}/{key}" for path in mounts for key in CONFIG["data"]}


@pytest.mark.parametrize(
    ("command", "verb", "pod"),
    [
        (shlex.split(RAYJOB["spec"]["entrypoint"]), "score", HEAD),
        (shlex.split(RAYCRONJOB["spec"]["jobTemplate"]["entrypoint"]), "score", HEAD),
        (SUBMITTER["containers"][0]["command"], "submit", SUBMITTER),
    ],
    ids=["rayjob", "raycronjob", "cronjob"],
)
def test_entrypoints_are_commands_on_a_config_that_is_there(command: list[str], verb: str, pod: dict[str, Any]) -> None:
    assert assert_parses(command) == verb
    assert command[2] in mounted(pod)


def test_the_cronjob_reaches_the_standing_cluster() -> None:
    (container,) = SUBMITTER["containers"]
    name = RAYCLUSTER["metadata"]["name"]
    assert container["command"][container["command"].index("--address") + 1] == f"http://{name}-head-svc:8265"
    environment = {one["name"]: one for one in container["env"]}
    assert environment["RAY_AUTH_MODE"]["value"] == SPEC["authOptions"]["mode"] == "token"
    assert environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": name, "key": "auth_token"}


def test_runs_do_not_overlap() -> None:
    assert CRONJOB["spec"]["concurrencyPolicy"] == "Forbid"
    assert "concurrencyPolicy" not in RAYCRONJOB["spec"]  # not a field of it: what overlaps ends with exit code 7
    assert RAYCRONJOB["spec"]["jobTemplate"]["backoffLimit"] == 0


def test_a_night_is_tried_again_only_where_that_helps() -> None:
    spec = CRONJOB["spec"]["jobTemplate"]["spec"]
    (rule,) = spec["podFailurePolicy"]["rules"]
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # else Kubernetes refuses a podFailurePolicy
    assert rule["onExitCodes"]["containerName"] == SUBMITTER["containers"][0]["name"]
    assert {2, 4, 5, 7, 143} <= set(rule["onExitCodes"]["values"])  # 143: somebody cancelled it
    assert 1 not in rule["onExitCodes"]["values"]  # failed shards: the same command goes on


FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


@pytest.mark.parametrize("spec", [RAYCRONJOB["spec"], CRONJOB["spec"]], ids=["raycronjob", "cronjob"])
def test_schedules_are_five_fields_in_a_time_zone(spec: dict[str, Any]) -> None:
    ZoneInfo(spec["timeZone"])  # raises for one that there is not
    for field, (low, high) in zip(spec["schedule"].split(), FIELDS, strict=True):
        assert re.fullmatch(r"(\*|\d+(-\d+)?(,\d+(-\d+)?)*)(/\d+)?", field)
        assert all(low <= int(number) <= high for number in re.findall(r"\d+", field.partition("/")[0]))


def test_no_secret_stands_in_a_file() -> None:
    for path in (*KUBERAY.glob("*.yaml"), *CLUSTER.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        assert "kind: Secret" not in text
        assert not re.search(r"AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY", text)
    for pod in PODS:
        for variable in pod["containers"][0].get("env", []):
            secret = re.search("TOKEN|SECRET|PASSWORD|ACCESS_KEY", variable["name"])
            assert not (secret and "value" in variable), variable["name"]


# Image


def test_the_image_copies_what_its_context_holds() -> None:
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert ignored[0] == "*"
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == COPIED
    assert all((ROOT / name).exists() for name in COPIED)


def test_the_image_installs_the_lock_and_runs_as_nobody_special() -> None:
    dependencies, package = (step for step in steps("RUN") if "uv pip install" in step)
    assert "--constraints requirements.lock" in dependencies
    assert "--build-constraints requirements.lock --no-deps" in package
    assert steps("USER") == ["1000"]
    (paths,) = (step for step in steps("ENV") if "PATH=" in step)
    assert "PATH=/opt/gradosr/bin:$PATH" in paths
    for requirement in requires("gradosr") or []:
        name = re.split(r"[^\w-]", requirement)[0].lower()
        assert name == "gradosr" or locked(name)  # its extras name it


def test_image_and_nodes_have_the_same_tools() -> None:
    setup = " ".join(AWS["setup_commands"])
    assert set(re.findall(r"uv==([\d.]+)", DOCKERFILE)) == set(re.findall(r"astral.sh/uv/([\d.]+)/", setup))
    pythons = {re.fullmatch(r"python:([\d.]+)-slim-\w+.*", step).group(1) for step in steps("FROM")}  # type: ignore[union-attr]
    assert pythons == set(re.findall(r"--python ([\d.]+)", setup))


# README


def test_the_readme_follows_the_job_that_the_manifest_starts() -> None:
    service = f"{RAYJOB['metadata']['name']}-head-svc"
    assert f"kubectl exec service/{service} -- ray job logs --follow {RAYJOB['spec']['jobId']}" in README


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for tag, text in found if tag == language]


def test_every_job_in_the_readme_loads() -> None:
    assert blocks("yaml")
    for block in blocks("yaml"):
        load_settings(ScoreJob, block, "README.md")


def test_every_command_in_the_readme_is_one() -> None:
    lines = "\n".join(blocks("")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines if line.startswith("gradosr ")]
    assert {"submit", "status", "logs", "cancel"} == {assert_parses(command) for command in commands}


def test_every_file_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"cluster/[\w./-]+\w", README))
    assert {f"cluster/{path.relative_to(CLUSTER)}" for path in CLUSTER.rglob("*.yaml")} <= named
    assert all((ROOT / name).exists() for name in named)
