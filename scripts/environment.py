"""The virtual environment that the commands run in: made once, brought up to date when it no longer fits.

The standard library alone: this runs on a fresh machine, before anything is installed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"


def say(line: str) -> None:
    print(f"{Path(sys.argv[0]).name}: {line}", flush=True)


def refuse(line: str) -> SystemExit:
    return SystemExit(f"{Path(sys.argv[0]).name}: {line}")


@dataclass(frozen=True)
class Stamp:
    """What an environment was made for. It is used again as it is while this stays the same."""

    folder: str
    """A moved environment has wrong paths in its commands."""

    python: str
    pyproject: str
    groups: list[str]


@dataclass(frozen=True)
class Environment:
    """A virtual environment in the checkout, with lbkit installed from the checkout itself."""

    folder: Path = ROOT / ".venv"
    interpreter: str = sys.executable
    version: str = platform.python_version()

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def python(self) -> Path:
        return self.bin / "python"

    @property
    def variables(self) -> dict[str, str]:
        """The variables of this process, as they would be with the environment activated."""
        path = os.pathsep.join([str(self.bin), os.environ.get("PATH", os.defpath)])
        return {**os.environ, "PATH": path, "VIRTUAL_ENV": str(self.folder)}

    def ensure(self, *groups: str) -> None:
        """Install lbkit with all extras and these dependency groups, unless that is done already."""
        with one_at_a_time():
            have = self._stamp()
            if have is None:
                self._install(self._wanted(groups), anew=True)
            elif have != (wanted := self._wanted([*groups, *have.groups])):
                self._install(wanted, anew=False)

    def pip(self, *arguments: str) -> None:
        command = [str(self.python), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
        if run(*command):
            raise refuse(f"this failed: {' '.join(command)}")

    def _wanted(self, groups: Iterable[str]) -> Stamp:
        digest = hashlib.sha256(PYPROJECT.read_bytes()).hexdigest()
        return Stamp(str(self.folder), self.version, digest, sorted(set(groups)))

    def _install(self, wanted: Stamp, *, anew: bool) -> None:
        began_at = time.monotonic()
        what = ", ".join(["lbkit with all extras", *(f"group {group}" for group in wanted.groups)])
        say(f"installing {what} into {self.folder.name}; this is needed once ...")
        if anew:
            self._make()
        self._stamp_file.unlink(missing_ok=True)
        self.pip("install", "--upgrade", "pip>=25.1")  # the first that knows dependency groups
        groups = [part for group in wanted.groups for part in ("--group", f"{PYPROJECT}:{group}")]
        self.pip("install", "--editable", f"{ROOT}[all]", *groups)
        self._stamp_file.write_text(json.dumps(asdict(wanted), indent=1))
        say(f"installed in {time.monotonic() - began_at:.0f} s")

    def _make(self) -> None:
        make = [self.interpreter, "-m", "venv", "--clear", str(self.folder)]
        # Debian ships Python without ensurepip; there a pip from 22.3 on can fill an empty environment.
        fill = [self.interpreter, "-m", "pip", "--python", str(self.python), "install", "--quiet", "pip"]
        if run(*make) and (run(*make, "--without-pip") or run(*fill)):
            raise refuse(f"{self.interpreter} cannot make {self.folder}; on Debian: apt install python3-venv")

    @property
    def _stamp_file(self) -> Path:
        return self.folder / "lbkit.json"

    def _stamp(self) -> Stamp | None:
        """None when there is no such environment, or it cannot be brought up to date."""
        try:
            stamp = Stamp(**json.loads(self._stamp_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        same = (stamp.folder, stamp.python) == (str(self.folder), self.version)
        return stamp if same and self.python.exists() else None


def run(*command: str) -> int:
    return subprocess.run(command, check=False).returncode


def python_version(interpreter: str) -> str:
    """Such as `3.12.1`, or an empty string when it does not run (a shim without an interpreter behind it)."""
    ask = [interpreter, "-c", "import platform; print(platform.python_version())"]
    try:
        answer = subprocess.run(ask, check=False, capture_output=True, text=True)
    except OSError:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two commands started together must not install into one environment."""
    with PYPROJECT.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
