"""A worker alone in its process, which has to outlive every shard: python lone_worker.py FOLDER

Scores FOLDER/tar/archive and FOLDER/parquet/archive, whichever there are, into results beside them, as a run does.
stdout gets a JSON line before and one after each shard. The process ends itself, with the stacks of all threads on
stderr, over a shard that takes longer than SECONDS, and can take no more than ADDRESSES bytes beyond what it had when
the worker was ready.
"""

import ctypes
import faulthandler
import json
import re
import resource
import sys
from pathlib import Path
from typing import Any

from tiny import local_job

from gradosr.errors import ShardUnreadable
from gradosr.results.outcome import Outcome
from gradosr.run.plan import finish, prepare
from gradosr.scoring.worker import ShardWorker

SECONDS = 120.0
ADDRESSES = 8 << 30
MAX_PIXELS = 2**24
"""Less than by default: the memory and time that an image may take go by it."""
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: 0)  # of glibc alone
SOURCES: dict[str, dict[str, str]] = {"tar": {}, "parquet": {"label_column": "label"}}


def score(folder: Path, kind: str) -> None:
    """All shards of one archive."""
    source = {"kind": kind, "uri": f"{folder}/archive/", **SOURCES[kind]}
    job = local_job(folder, input=source, batch_size=32, max_pixels=MAX_PIXELS)
    plan, outcome = prepare(job), Outcome()
    plan.claim()
    worker = ShardWorker(job, plan.fingerprint, threads=2)
    worker.ready()
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + ADDRESSES, resource.RLIM_INFINITY))
    for shard in plan.pending:
        say(shard=shard.name, part=shard.part)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        TRIM(0)  # what is kept is what is not free
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before = memory("VmRSS")
        try:
            outcome.scored[shard.part] = worker.score(shard)()
        except ShardUnreadable as error:
            plan.folder.quarantine(shard, str(error), 1)
            outcome.quarantined[shard.part] = str(error)
        faulthandler.cancel_dump_traceback_later()
        say(before=before, peak=memory("VmHWM"), unreadable=outcome.quarantined.get(shard.part))
    finish(plan, outcome)


def memory(field: str) -> int:
    """Bytes: VmSize, of addresses; VmRSS, resident; VmHWM, the most that were resident."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    faulthandler.enable()
    for kind in SOURCES:
        if (Path(sys.argv[1]) / kind).exists():
            score(Path(sys.argv[1]) / kind, kind)
