"""The figures inside a real cgroup, where this user may make one: a container's limits on a real kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lbkit.health.cgroup import Hierarchy, hierarchies

MIB = 2**20

INSIDE = """
import json, os, sys, time
from pathlib import Path
from lbkit.metrics import Sampler
def join(folder):
    Path(folder, "cgroup.procs").write_text(str(os.getpid()))
join(json.loads(sys.argv[1])[0])  # memory first: a fifth of a CPU is slow
held = bytearray(166 * 2**20)  # the interpreter has the rest
for place in range(0, len(held), 4096):
    held[place] = 1
with open(sys.argv[2], "wb") as file:  # 60 MiB that the kernel keeps as a cache, and could drop
    for _ in range(60):
        file.write(bytes(2**20))
    file.flush()
    os.fsync(file.fileno())
with open(sys.argv[2], "rb") as file:
    while file.read(2**20):
        pass
for folder in json.loads(sys.argv[1]):
    join(folder)
def counted():  # by the kernel: periods, and those in which we were stopped
    for folder in json.loads(sys.argv[1]):
        stat = Path(folder, "cpu.stat")
        words = dict(line.split() for line in stat.read_text().splitlines()) if stat.exists() else {}
        if "nr_periods" in words:
            return int(words["nr_periods"]), int(words["nr_throttled"])
began, used, (periods, throttled) = time.monotonic(), time.process_time(), counted()
sampler = Sampler()
until = time.monotonic() + 1.5
while time.monotonic() < until:
    pass
vitals = sampler.sample()
elapsed, used = time.monotonic() - began, time.process_time() - used
more_periods, more_throttled = counted()
source = vitals.source
print(json.dumps({
    "own_cpu": min(100.0, 100 * used / (elapsed * 0.2)),
    "own_throttled": 100 * (more_throttled - throttled) / (more_periods - periods),
    "cpu": vitals.cpu_percent, "cpu_limit": source.cpu_limit, "throttled": source.throttled_percent,
    "memory": vitals.memory_percent, "limit": source.memory_limit_bytes, "held": len(held),
}))
"""


@pytest.fixture
def cgroup() -> Iterator[list[Path]]:
    """New cgroups of 256 MiB and a fifth of a CPU below our own: one in version 2, more in version 1."""
    found = hierarchies(Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text())
    made: list[Path] = []
    try:
        for controller in ("memory", "cpu", "cpuacct"):
            folder = make(found[controller], controller)
            if folder not in made:
                made.append(folder)
    except (KeyError, OSError) as error:
        for folder in made:
            folder.rmdir()
        pytest.skip(f"no cgroup can be made here: {error}")
    yield made
    for folder in made:
        folder.rmdir()


def make(hierarchy: Hierarchy, controller: str) -> Path:
    folder = Path(hierarchy.folders[0]) / f"lbkit-test-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    if controller == "memory":
        name = "memory.max" if hierarchy.version == 2 else "memory.limit_in_bytes"
        (folder / name).write_text(str(256 * MIB))
    elif controller == "cpu" and hierarchy.version == 2:
        (folder / "cpu.max").write_text("20000 100000")
    elif controller == "cpu":
        (folder / "cpu.cfs_period_us").write_text("100000")
        (folder / "cpu.cfs_quota_us").write_text("20000")
    return folder


def test_a_container_s_figures_on_a_real_kernel(cgroup: list[Path], tmp_path: Path) -> None:
    folders = json.dumps([str(folder) for folder in cgroup])
    command = [sys.executable, "-c", INSIDE, folders, str(tmp_path / "cached")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["limit"] == 256 * MIB
    assert told["cpu_limit"] == pytest.approx(0.2)
    # It spun all the while: all of its fifth is used, however idle the host is. On a host that is busy
    # it may not get its fifth, so what it really got is the measure.
    assert told["cpu"] == pytest.approx(told["own_cpu"], abs=6)
    assert told["throttled"] == pytest.approx(told["own_throttled"], abs=10)
    assert told["cpu"] > 40
    assert told["throttled"] > 0
    # 180 of 256 MiB and what the kernel itself holds; with the cache counted in it would be above 90.
    assert 66 <= told["memory"] <= 80
