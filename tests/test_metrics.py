"""The container's figures, from trees of files as the kernel writes them; and the host's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from lbkit.health.cgroup import hierarchies, memory_limit, quota_v1, quota_v2
from lbkit.health.vitals import Thresholds, Vitals, breaches
from lbkit.metrics import Sampler
from tests.health_gateways import FakeClock

MIB = 2**20
SENTINEL = "9223372036854771712"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = "".join(
    f"{number} 31 0:{number} {{root}} /sys/fs/cgroup/{name} rw,relatime - cgroup cgroup rw,{name}\n"
    for number, name in ((32, "cpu,cpuacct"), (35, "memory"))
)


class Tree:
    """The files of a kernel under a folder, and a sampler that reads them."""

    def __init__(self, root: Path, *, cgroup: str, mountinfo: str) -> None:
        self.root = root
        self.clock = FakeClock()
        self.write("/proc/self/cgroup", cgroup)
        self.write("/proc/self/mountinfo", mountinfo)

    def write(self, path: str, text: str | int) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def sampler(self) -> Sampler:
        return Sampler(root=self.root, clock=self.clock, sleep=self.pass_time)

    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds


class V2(Tree):
    def __init__(self, root: Path, path: str = "/") -> None:
        super().__init__(root, cgroup=f"0::{path}\n", mountinfo=V2_MOUNT)

    def memory(self, path: str, *, limit: str | int, used: int, cache: int = 0) -> None:
        folder = f"/sys/fs/cgroup{path}"
        self.write(f"{folder}/memory.max", limit)
        self.write(f"{folder}/memory.current", used)
        self.write(f"{folder}/memory.stat", f"anon {used - cache}\nfile {cache}\ninactive_file {cache}")

    def cpu(self, path: str, *, limit: str, used: float, periods: int = 0, throttled: int = 0) -> None:
        folder = f"/sys/fs/cgroup{path}"
        self.write(f"{folder}/cpu.max", limit)
        stat = f"usage_usec {round(used * 1e6)}\nuser_usec 0\nnr_periods {periods}\nnr_throttled {throttled}"
        self.write(f"{folder}/cpu.stat", stat)


class V1(Tree):
    def __init__(self, root: Path, path: str = "/docker/0a1b", mounted: str = "/docker/0a1b") -> None:
        mounts = V1_MOUNTS.format(root=mounted)
        super().__init__(root, cgroup=f"4:memory:{path}\n3:cpu,cpuacct:{path}\n0::/\n", mountinfo=mounts)

    def memory(self, path: str, *, limit: str | int, used: int, cache: int = 0) -> None:
        folder = f"/sys/fs/cgroup/memory{path}"
        self.write(f"{folder}/memory.limit_in_bytes", limit)
        self.write(f"{folder}/memory.usage_in_bytes", used)
        # The figure without `total_` leaves the children out.
        self.write(f"{folder}/memory.stat", f"inactive_file 0\ntotal_inactive_file {cache}")

    def cpu(self, path: str, *, quota: int, used: float, periods: int = 0, throttled: int = 0) -> None:
        folder = f"/sys/fs/cgroup/cpu,cpuacct{path}"
        self.write(f"{folder}/cpu.cfs_quota_us", quota)
        self.write(f"{folder}/cpu.cfs_period_us", 100000)
        self.write(f"{folder}/cpuacct.usage", round(used * 1e9))
        self.write(f"{folder}/cpu.stat", f"nr_periods {periods}\nnr_throttled {throttled}\nthrottled_time 0")


@pytest.mark.parametrize("kind", [V1, V2])
def test_memory_in_use_is_the_working_set_of_the_container(tmp_path: Path, kind: type[V1] | type[V2]) -> None:
    tree = kind(tmp_path)
    # 180 MiB that the app holds and 60 MiB that the kernel cached: 97.6 % by the raw counter.
    tree.memory("", limit=256 * MIB, used=250 * MIB, cache=60 * MIB)
    vitals = tree.sampler().sample()
    assert vitals.memory_percent == pytest.approx(74, abs=2)
    assert vitals.source.memory_limit_bytes == 256 * MIB
    assert vitals.source.memory == f"cgroup{kind.__name__[1]}"


def test_cpu_is_the_share_of_the_quota_in_version_2(tmp_path: Path) -> None:
    tree = V2(tmp_path)
    tree.cpu("", limit="20000 100000", used=10.0, periods=100, throttled=40)
    sampler = tree.sampler()
    tree.clock.now += 6.0
    tree.cpu("", limit="20000 100000", used=11.2, periods=160, throttled=100)
    vitals = sampler.sample()
    assert vitals.cpu_percent == pytest.approx(100, abs=3)
    assert vitals.source.cpu == "cgroup2"
    assert vitals.source.cpu_limit == pytest.approx(0.2)
    assert vitals.source.throttled_percent == pytest.approx(100)


def test_cpu_is_the_share_of_the_quota_in_version_1(tmp_path: Path) -> None:
    tree = V1(tmp_path)
    tree.cpu("", quota=50000, used=3.0)
    sampler = tree.sampler()
    tree.clock.now += 4.0
    tree.cpu("", quota=50000, used=3.5)
    vitals = sampler.sample()
    assert vitals.cpu_percent == pytest.approx(25)
    assert (vitals.source.cpu, vitals.source.cpu_limit) == ("cgroup1", 0.5)
    assert vitals.source.throttled_percent is None


def test_version_1_may_count_cpu_time_in_another_hierarchy(tmp_path: Path) -> None:
    mounts = (
        "33 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
        "34 31 0:31 / /sys/fs/cgroup/acct rw - cgroup cgroup rw,cpuacct\n"
    )
    tree = Tree(tmp_path, cgroup="2:cpuacct:/app\n1:cpu:/app\n", mountinfo=mounts)
    tree.write("/sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", 100000)
    tree.write("/sys/fs/cgroup/cpu/app/cpu.cfs_period_us", 100000)
    tree.write("/sys/fs/cgroup/acct/app/cpuacct.usage", 0)
    sampler = tree.sampler()
    tree.clock.now += 10
    tree.write("/sys/fs/cgroup/acct/app/cpuacct.usage", 4_000_000_000)
    assert sampler.sample().cpu_percent == pytest.approx(40)


def test_a_limit_of_an_ancestor_counts(tmp_path: Path) -> None:
    tree = V2(tmp_path, "/kubepods/pod1/app")
    tree.memory("/kubepods/pod1/app", limit="max", used=100 * MIB)
    tree.memory("/kubepods/pod1", limit=200 * MIB, used=150 * MIB)
    tree.memory("/kubepods", limit=4000 * MIB, used=400 * MIB)
    tree.cpu("/kubepods/pod1/app", limit="max 100000", used=1)
    tree.cpu("/kubepods/pod1", limit="50000 100000", used=2)
    tree.cpu("/kubepods", limit="100000 100000", used=50)
    sampler = tree.sampler()
    tree.clock.now += 10
    tree.cpu("/kubepods/pod1", limit="50000 100000", used=4)
    vitals = sampler.sample()
    # The pod's own use, not that of one container in it, is what its limit is for.
    assert vitals.memory_percent == pytest.approx(75)
    assert vitals.source.memory_limit_bytes == 200 * MIB
    assert vitals.cpu_percent == pytest.approx(40)
    assert vitals.source.cpu_limit == 0.5


def test_of_two_limits_the_one_that_is_nearest_counts(tmp_path: Path) -> None:
    tree = V2(tmp_path, "/pod/app")
    tree.memory("/pod/app", limit=100 * MIB, used=20 * MIB)
    tree.memory("/pod", limit=200 * MIB, used=190 * MIB)
    vitals = tree.sampler().sample()
    assert vitals.memory_percent == pytest.approx(95)
    assert vitals.source.memory_limit_bytes == 200 * MIB


def test_more_quota_than_cpus_is_no_more_than_the_cpus(tmp_path: Path) -> None:
    tree = V2(tmp_path)
    tree.cpu("", limit="100000000 100000", used=0)
    cpus = len(os.sched_getaffinity(0))
    sampler = tree.sampler()
    tree.clock.now += 10
    tree.cpu("", limit="100000000 100000", used=10.0 * cpus)
    vitals = sampler.sample()
    assert vitals.source.cpu_limit == cpus
    assert vitals.cpu_percent == pytest.approx(100)


@pytest.mark.parametrize("kind", ["v1", "v2", "none", "garbage"])
def test_without_a_limit_the_host_s_figures_are_told(tmp_path: Path, kind: str) -> None:
    tree: Tree
    if kind == "v1":
        tree = V1(tmp_path)
        tree.memory("", limit=SENTINEL, used=999 * MIB)
        tree.cpu("", quota=-1, used=1)
    elif kind == "v2":
        tree = V2(tmp_path)
        tree.memory("", limit="max", used=999 * MIB)
        tree.cpu("", limit="max 100000", used=1)
    else:
        text = "\x00not : a\nkernel - file" if kind == "garbage" else ""
        tree = Tree(tmp_path, cgroup=text, mountinfo=text)
    vitals = tree.sampler().sample()
    assert (vitals.source.cpu, vitals.source.memory) == ("host", "host")
    assert vitals.source.memory_limit_bytes is None
    assert vitals.source.cpu_limit is None
    assert vitals.memory_percent == pytest.approx(psutil.virtual_memory().percent, abs=10)


def test_a_limit_above_the_host_s_memory_is_none(tmp_path: Path) -> None:
    tree = V2(tmp_path)
    tree.memory("", limit=psutil.virtual_memory().total * 2, used=MIB)
    assert tree.sampler().sample().source.memory == "host"


def test_a_container_without_a_namespace_sees_its_own_cgroup_at_the_mount_point(tmp_path: Path) -> None:
    tree = V1(tmp_path, path="/docker/0a1b", mounted="/docker/0a1b")
    tree.memory("", limit=100 * MIB, used=50 * MIB)
    assert tree.sampler().sample().memory_percent == pytest.approx(50)
    # The host's path of the container means nothing inside it.
    other = V1(tmp_path, path="/docker/0a1b/inner", mounted="/somewhere/else")
    assert other.sampler().sample().memory_percent == pytest.approx(50)


def test_files_that_vanish_leave_the_other_figures(tmp_path: Path) -> None:
    tree = V2(tmp_path)
    tree.memory("", limit=100 * MIB, used=50 * MIB)
    tree.cpu("", limit="20000 100000", used=0)
    sampler = tree.sampler()
    (tmp_path / "sys/fs/cgroup/memory.current").unlink()
    (tmp_path / "sys/fs/cgroup/cpu.stat").unlink()
    vitals = sampler.sample()
    assert vitals.source.memory == "host"
    assert vitals.cpu_percent == 0.0
    assert vitals.disk_percent is not None


def test_a_disk_that_is_not_there_leaves_the_other_figures() -> None:
    vitals = Sampler(disk_path="/no/such/disk").sample()
    assert vitals.disk_percent is None
    assert vitals.memory_percent is not None


def test_mountinfo_escapes_are_read() -> None:
    mount = r"30 23 0:26 / /sys/fs/my\040cgroup rw - cgroup2 cgroup2 rw"
    assert hierarchies("0::/a", mount)["cpu"].folders == ("/sys/fs/my cgroup/a", "/sys/fs/my cgroup")


@pytest.mark.parametrize(
    ("text", "limit"),
    [("max", None), ("", None), (SENTINEL, None), ("-1", None), ("0", None), ("1048576", MIB)],
)
def test_memory_limits(text: str, limit: int | None) -> None:
    assert memory_limit(text) == limit


def test_cpu_quotas() -> None:
    assert quota_v2("max 100000") is None
    assert quota_v2("150000 100000") == 1.5
    assert quota_v2("50000") == 0.5
    assert quota_v2("") is None
    assert quota_v1("-1", "100000") is None
    assert quota_v1("20000", "0") is None


def test_thresholds_are_strict() -> None:
    vitals = Vitals(cpu_percent=80.0, memory_percent=84.9, disk_percent=None)
    assert breaches(vitals, Thresholds()) == ("cpu",)


@contextmanager
def busy_cpus() -> Iterator[None]:
    """Every CPU at work, each by a process of its own, for as long as the block lasts."""
    count = len(os.sched_getaffinity(0))
    command = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    spinners = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for spinner in spinners:
            assert spinner.stdout is not None
            spinner.stdout.readline()
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.communicate()


def test_every_thread_reads_the_same_busy_cpu() -> None:
    readings: list[float | None] = []
    with busy_cpus():
        sampler = Sampler()  # its baseline is taken here, with the CPUs busy already
        for _ in range(4):
            thread = threading.Thread(target=lambda: readings.append(sampler.sample().cpu_percent))
            thread.start()
            thread.join()
    assert len(readings) == 4
    assert all(reading is not None and reading >= 95 for reading in readings), readings
