"""Schedules as Kubernetes objects: a batch/v1 CronJob, or KubeRay's RayCronJob.

They have the same structure as the objects in cluster/kuberay/.
"""

import re
import shlex
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from gradosr.errors import ConfigError
from gradosr.schedules import Schedule
from gradosr.schedules.cron import ClockChanges, Cron

ADVICE = (
    "CONFIG travels in the ConfigMap gradosr; bundles and images are reached by s3:// URIs, with credentials of the "
    "pods' own (cluster/README.md); code of your own that CONFIG trusts must be in the image"
)
_MOUNT = "/etc/gradosr"
_USER = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
_STAY = {  # the driver runs in this pod, so it must not be evicted for better packing
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
_SECRET = [{"secretRef": {"name": "gradosr-s3", "optional": True}}]
_MOUNTS = [{"name": "config", "mountPath": _MOUNT, "readOnly": True}]
_VOLUMES = [{"name": "config", "configMap": {"name": "gradosr"}}]
_RAY_POD = {"serviceAccountName": "gradosr", "securityContext": _USER, "terminationGracePeriodSeconds": 120}
_DRAIN = [{"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "100"}]
_FINAL = [2, 4, 5, 6, 7, 143]
"""Exit codes for which a retry would change nothing: config, input, bad images, a tripped gate, an active run, a
cancelled run."""


def changes(_cron: Cron) -> ClockChanges:
    """Return the behaviour of robfig/cron, which both controllers use: the displayed time alone counts."""
    return ClockChanges(late=False, twice=True)


def cronjob(schedule: Schedule, _now: datetime) -> Mapping[str, str]:
    """Return a CronJob whose pod runs the night, on the cluster in the config's ray.address or by itself."""
    token = {"secretKeyRef": {"name": "gradosr", "key": "auth_token", "optional": True}}  # for a running cluster
    container = {
        "name": "screen",
        "image": schedule.image,
        "command": ["gradosr", "screen", _config(schedule)],
        "env": [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": token}],
        "envFrom": _SECRET,
        "resources": _resources(cpu="1", memory="4Gi"),
        "volumeMounts": _MOUNTS,
    }
    pod = {
        "restartPolicy": "Never",
        "serviceAccountName": "gradosr",
        "automountServiceAccountToken": False,
        "securityContext": _USER,
        "containers": [container],
        "volumes": _VOLUMES,
    }
    on_exit = {"containerName": "screen", "operator": "In", "values": _FINAL}
    job = {
        "backoffLimit": 2,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": on_exit}]},
        "template": {"metadata": {"annotations": _STAY}, "spec": pod},
    }
    spec = {
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": 3600,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 7,
        "jobTemplate": {"spec": job},
    }
    about = (
        "The pod drives the night on the cluster that ray.address of the config names; with `local` it does the work",
        "itself: give it the cores and memory then. Forbid skips a night whose predecessor still runs.",
    )
    return _manifest(schedule, "batch/v1", "CronJob", spec, about)


def raycronjob(schedule: Schedule, _now: datetime) -> Mapping[str, str]:
    """Return a RayCronJob, which starts a new cluster for every night."""
    job = {
        "entrypoint": f"gradosr screen {_config(schedule)}",
        "runtimeEnvYAML": 'env_vars: {RAY_JOB_STOP_WAIT_TIME_S: "90"}\n',
        "jobId": schedule.name,
        "submissionMode": "HTTPMode",
        "backoffLimit": 0,
        "preRunningDeadlineSeconds": 1800,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "rayClusterSpec": _cluster(schedule.image),
    }
    about = (
        "RayCronJob came with KubeRay 1.6, is alpha, and off unless the operator's feature gate RayCronJob is on. It",
        "has no concurrencyPolicy: a night that finds the one before still at work ends with exit code 7 (the run's",
        "lease); the next one goes on with what is left. The config says ray: {address: auto}.",
    )
    return _manifest(schedule, "ray.io/v1", "RayCronJob", {"suspend": False, "jobTemplate": job}, about)


def _cluster(image: str) -> dict[str, Any]:
    head = {
        **_ray_container("ray-head", image),
        "ports": [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "client", "containerPort": 10001},
        ],
        "resources": _resources(cpu="2", memory="8Gi"),
        "volumeMounts": _MOUNTS,
    }
    return {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 120},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": {
                "metadata": {"annotations": _STAY},
                "spec": {**_RAY_POD, "containers": [head], "volumes": _VOLUMES},
            },
        },
        "workerGroupSpecs": [_gpu_workers(image)],
    }


def _gpu_workers(image: str) -> dict[str, Any]:
    gpu = {"nvidia.com/gpu": "1"}
    worker = {**_ray_container("ray-worker", image), "resources": _resources(cpu="7", memory="24Gi", **gpu)}
    pod = {
        **_RAY_POD,
        "automountServiceAccountToken": False,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [worker],
    }
    return {
        "groupName": "gpu",
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": 8,
        "rayStartParams": {},
        "template": {"spec": pod},
    }


def _ray_container(name: str, image: str) -> dict[str, Any]:
    return {"name": name, "image": image, "env": _DRAIN, "envFrom": _SECRET}


def _resources(**amounts: str) -> dict[str, dict[str, str]]:
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _config(schedule: Schedule) -> str:
    """Return the path of the config in the pods.

    Raise ConfigError if a ConfigMap cannot contain a file with this name.
    """
    name = Path(schedule.config).name
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}", name):
        raise ConfigError(f"{name!r}: a ConfigMap cannot contain a file with this name; use letters, digits, . _ -")
    return f"{_MOUNT}/{name}"


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values out in full, for people and for readers that refuse references."""
        return True


def _manifest(
    schedule: Schedule, api: str, kind: str, spec: Mapping[str, Any], about: tuple[str, ...]
) -> Mapping[str, str]:
    """Return a file with the object, whose `spec` lacks only the times."""
    name = Path(schedule.config).name
    document = {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": schedule.name},
        "spec": {"schedule": str(schedule.cron), "timeZone": schedule.zone.key, **spec},
    }
    lines = (
        *about,
        f"The config: kubectl create configmap gradosr --from-file={name}={shlex.quote(schedule.config)} \\",
        "              --dry-run=client -o yaml | kubectl apply -f -",
    )
    if "ghcr.io/OWNER/" in schedule.image:
        lines += ("Write your registry for OWNER, or give --image.",)
    body = yaml.dump(document, Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)
    return {f"{schedule.name}.yaml": "".join(f"# {line}\n" for line in lines) + body}
