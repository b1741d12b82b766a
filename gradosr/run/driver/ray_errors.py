"""The meaning that each exception of Ray has for a run, whichever call raised it.

shard   our own code raised it over a shard, or raised something that cannot be sent: a verdict on the shard
worker  the worker failed: counted against its shard and its node
memory  Ray evicted the worker because its node ran low on memory: counted likewise, but never marks the shard
node    the node, the way to it or an answer was lost: counted against neither shard nor worker
run     Ray itself failed, or was used as no run uses it: the run ends, and the same command goes on
"""

from typing import Literal

from ray.exceptions import RayError, RayTaskError

from gradosr.errors import GradosrError, first_line

Meaning = Literal["shard", "worker", "memory", "node", "run"]

MEANINGS: dict[str, Meaning] = {
    "RayTaskError": "shard",
    "CrossLanguageError": "shard",
    "UserCodeException": "shard",
    "UnserializableException": "shard",
    "OufOfBandObjectRefSerializationException": "shard",
    "RayActorError": "worker",
    "WorkerCrashedError": "worker",
    "AsyncioActorExit": "worker",
    "RuntimeEnvSetupError": "worker",
    "OutOfMemoryError": "memory",
    "ActorUnavailableError": "node",
    "NodeDiedError": "node",
    "LocalRayletDiedError": "node",
    "ObjectLostError": "node",
    "ObjectStoreFullError": "node",
    "OutOfDiskError": "node",
    "PlasmaObjectNotAvailable": "node",
    "TaskCancelledError": "node",
    "RpcError": "node",
    "GetTimeoutError": "node",
    "RaySystemError": "run",
    "AuthenticationError": "run",
    "TaskPlacementGroupRemoved": "run",
    "ActorPlacementGroupRemoved": "run",
    "TaskUnschedulableError": "run",
    "ActorUnschedulableError": "run",
    "PendingCallsLimitExceeded": "run",
    "ObjectRefStreamEndOfStreamError": "run",
    "ActorAlreadyExistsError": "run",
    "ActorHandleNotFoundError": "run",
}
"""Meanings by class name, which hold for subclasses too. By name, because Ray's versions do not have the same classes;
one that is not here ends the run."""

EVICTED = (
    "evicted by Ray, because its node ran low on memory; use fewer workers, a smaller batch_size, "
    "or nodes with more memory"
)


def meaning(error: RayError) -> Meaning:
    """Return what an exception of Ray means to the run."""
    return next((MEANINGS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in MEANINGS), "run")


def own(error: Exception) -> Exception:
    """Return the exception our code raised, out of Ray's wrapping."""
    return error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error


def told(error: Exception) -> str:
    """Describe a failure in one line; a foreign error, whose text is not written for users, with its type."""
    if isinstance(error, RayError) and meaning(error) == "memory":
        return EVICTED
    line = first_line(error)
    return line if isinstance(error, GradosrError | RayError) else f"{type(error).__name__}: {line}"
