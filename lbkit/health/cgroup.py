"""Where the limits of a container are written, and what the texts there mean. Nothing is read here.

A process is in one cgroup of each hierarchy, and every ancestor of that may set a limit too; the file names:

==========  ====================  ============================================
            version 1             version 2
==========  ====================  ============================================
CPU limit   cpu.cfs_quota_us,     cpu.max: `20000 100000`, or `max 100000`
            cpu.cfs_period_us
CPU used    cpuacct.usage (ns)    cpu.stat: usage_usec
throttling  cpu.stat: nr_periods, nr_throttled
memory      memory.               memory.max, memory.current
            limit_in_bytes,       memory.stat: inactive_file
            usage_in_bytes
            memory.stat:
            total_inactive_file
==========  ====================  ============================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Hierarchy", "figures", "hierarchies", "memory_limit", "quota_v1", "quota_v2"]

UNLIMITED = 2**62
"""Version 1 writes a number near 2**63 where there is no limit."""

ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """The folders of this process in one hierarchy: its own cgroup first, then each visible ancestor."""

    version: int
    folders: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mount:
    version: int
    root: str
    point: str
    controllers: frozenset[str]


def hierarchies(membership: str, mountinfo: str) -> dict[str, Hierarchy]:
    """The hierarchies that limit `cpu` and `memory`, and that of `cpuacct`, where there are any.

    `membership` is the text of /proc/self/cgroup, `mountinfo` that of /proc/self/mountinfo. A controller
    that version 1 has is not in version 2.
    """
    paths = _membership(membership)
    mounts = _mounts(mountinfo)
    found: dict[str, Hierarchy] = {}
    for controller in ("cpu", "cpuacct", "memory"):
        for mount in mounts:
            if mount.version == 1 and controller in mount.controllers and controller in paths:
                found[controller] = Hierarchy(1, _ancestry(mount, paths[controller]))
                break
        else:
            unified = next((mount for mount in mounts if mount.version == 2), None)
            if unified is not None and "" in paths:
                found[controller] = Hierarchy(2, _ancestry(unified, paths[""]))
    return found


def quota_v1(quota: str, period: str) -> float | None:
    """CPUs that may be used at once; None for all of them, and for what cannot be read."""
    micros, per = _number(quota), _number(period)
    return micros / per if micros is not None and per and micros > 0 else None


def quota_v2(cpu_max: str) -> float | None:
    quota, _, period = cpu_max.strip().partition(" ")
    return quota_v1(quota, period or "100000")


def memory_limit(text: str) -> int | None:
    """Bytes; None for no limit, and for what cannot be read."""
    limit = _number(text)
    return limit if limit is not None and 0 < limit < UNLIMITED else None


def figures(text: str) -> dict[str, int]:
    """A file of `name number` lines, as cpu.stat and memory.stat are."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and _number(pair[1]) is not None}


def _membership(text: str) -> dict[str, str]:
    """The path in each hierarchy, by controller; version 2 has the empty name."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator:
            paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def _mounts(text: str) -> list[Mount]:
    found: list[Mount] = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(kind) < 3 or kind[0] not in ("cgroup", "cgroup2"):
            continue
        version = 2 if kind[0] == "cgroup2" else 1
        found.append(
            Mount(version, _unescaped(fields[3]), _unescaped(fields[4]), frozenset(kind[2].split(",")))
        )
    return found


def _ancestry(mount: Mount, path: str) -> tuple[str, ...]:
    """A container without a cgroup namespace sees its own cgroup at the mount point, under a foreign path."""
    inside = _below(path, mount.root)
    folders = [mount.point]
    for part in inside.split("/"):
        if part and part != "..":
            folders.append(f"{folders[-1].rstrip('/')}/{part}")
    return tuple(reversed(folders))


def _below(path: str, root: str) -> str:
    if root == "/":
        return path
    if path == root or path.startswith(f"{root}/"):
        return path[len(root) :]
    return ""


def _number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _unescaped(text: str) -> str:
    """mountinfo writes a space as \\040."""
    return ESCAPED.sub(lambda match: chr(int(match.group(1), 8)), text)
