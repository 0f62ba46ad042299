"""Other people's suites through three replicas, each from the package index: do the verdicts hold?

    python -m benchmarks.suites [flaskr httpbin isso fastapi ...] [--folder FOLDER] [--chaos kill=.2]

Downloads a suite's source, makes an environment for it where it needs one, runs it alone and over replicas,
and compares what was found with what is known to be there. Nothing of it is kept in this repository.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lbkit.testkit.findings import Oracle, Report
from lbkit.testkit.terminal import wrong

__all__ = ["SUITES", "Outcome", "Suite", "fetched", "interpreter", "is_as_known", "ran"]

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One suite, where it is, and what is known of it."""

    source: str
    """The requirement whose source distribution has it."""

    folder: str = "."
    tests: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """What it needs in an environment of its own; none: it runs in ours."""

    real: tuple[str, ...] = ()
    """Tests that depend on which replica answers, and why that is the app's fault."""

    removed: tuple[str, ...] = ()
    """Folders that must not be there: the package itself is installed."""


SUITES = {
    "flaskr": Suite(source="flask==3.1.3", folder="examples/tutorial"),
    "httpbin": Suite(source="httpbin==0.10.4", tests=("tests",)),
    "isso": Suite(
        source="isso==0.14.0",
        tests=("isso/tests",),
        needs=("bleach", "flask-caching", "html5lib", "jinja2", "mistune", "misaka", "werkzeug"),
    ),
    "fastapi": Suite(
        source="fastapi==0.165.0",
        tests=("tests/test_tutorial",),
        options=("--replica-private=docs_src", "-o", "timeout=60", "-n", "2"),
        removed=("fastapi",),
        needs=(
            *[
                "fastapi==0.165.0",
                "a2wsgi<=2.0",
                "anyio[trio]",
                "dirty-equals",
                "flask",
                "httpx",
                "httpx2",
                "inline-snapshot",
            ],
            *[
                "jinja2",
                "python-multipart",
                "orjson",
                "ujson",
                "passlib",
                "pwdlib[argon2]",
                "pyjwt",
                "python-jose",
                "pyyaml",
            ],
            *[
                "sqlmodel",
                "strawberry-graphql",
                "typer",
                "pytest-timeout",
                "pytest-xdist",
                "pydantic-settings",
                "uvicorn",
                "logfire",
            ],
            *["pydantic-extra-types", "email-validator", "websockets", "sentry-sdk", "opentelemetry-sdk"],
            *["opentelemetry-exporter-otlp-proto-http", "opentelemetry-instrumentation-fastapi"],
        ),
        real=(
            "test_encoder/test_tutorial001.py::test_put",  # fake_db, a dict
            "test_websockets/test_tutorial003.py::test_websocket_handle_disconnection",  # a room
        ),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """One run of a suite."""

    passed: int
    failed: int
    report: Report | None
    output: str

    @property
    def real(self) -> list[str]:
        found = self.report.of(Oracle.ASSERTION) if self.report else []
        return [each.what for each in found if each.verdict is not None and each.verdict.real]


def fetched(suite: Suite, folder: Path) -> Path:
    """The folder of a suite, downloaded and unpacked once."""
    place = folder / re.sub(r"\W+", "-", suite.source)
    if not place.exists():
        with tempfile.TemporaryDirectory() as temporary:
            pip(
                sys.executable, "download", "--no-deps", "--no-binary", ":all:", "-d", temporary, suite.source
            )
            (archive,) = Path(temporary).glob("*.tar.gz")
            with tarfile.open(archive) as files:
                files.extractall(temporary, filter="data")
            (unpacked,) = (each for each in Path(temporary).iterdir() if each.is_dir())
            for each in suite.removed:
                shutil.rmtree(unpacked / each, ignore_errors=True)
            shutil.move(unpacked, place)
    return place / suite.folder


def interpreter(name: str, suite: Suite, folder: Path) -> str:
    """A Python that has what the suite needs: ours, or one of its own, made once."""
    if not suite.needs:
        return sys.executable
    place = folder / f"{name}-python-{zlib.crc32(repr(suite.needs).encode()):x}"
    python, whole = place / "bin" / "python", place / "whole"
    if not whole.exists():
        venv.create(place, with_pip=True, clear=True)
        pip(str(python), "install", "pytest", "psutil", "itsdangerous", "setuptools", *suite.needs)
        whole.touch()
    return str(python)


def ran(suite: Suite, folder: Path, *options: str, python: str = sys.executable) -> Outcome:
    """Run a suite in its folder, as its author would, with our plugin."""
    report = folder / "lbkit-report.json"
    report.unlink(missing_ok=True)
    plain = ["-q", "-p", "lbkit.testkit.plugin", "-p", "no:cacheprovider", f"--replica-report={report}"]
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "LBKIT"))}
    done = subprocess.run(
        [python, "-m", "pytest", *plain, *suite.tests, *suite.options, *options],
        cwd=folder,
        env={**variables, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | loads(suite),
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)}
    found = Report.from_json(report.read_text("utf-8")) if report.exists() else None
    failed = counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0)
    return Outcome(counts.get("passed", 0), failed, found, done.stdout + done.stderr)


def loads(suite: Suite) -> dict[str, str]:
    """A suite with an environment of its own needs the plugins that are in there."""
    return {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": ""} if suite.needs else {}


def pip(python: str, *arguments: str) -> None:
    quiet = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([python, "-m", "pip", *quiet, *arguments], check=True, stderr=subprocess.DEVNULL)


def is_as_known(suite: Suite, outcome: Outcome) -> bool:
    found = outcome.real
    unknown = [each for each in found if not any(name in each for name in suite.real)]
    missed = [name for name in suite.real if not any(name in each for each in found)]
    return not unknown and not missed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suites", nargs="*", default=["flaskr", "httpbin", "isso"], choices=SUITES)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "lbkit-suites")
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--isolation", default="auto")
    parser.add_argument("--chaos", help="as --replica-chaos: what is known holds then, too")
    arguments = parser.parse_args(argv)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    unlike = 0
    for name in arguments.suites:
        suite = SUITES[name]
        folder = fetched(suite, arguments.folder)
        python = interpreter(name, suite, arguments.folder)
        over = (f"--replicas={arguments.replicas}", f"--replica-isolation={arguments.isolation}")
        over += (f"--replica-chaos={arguments.chaos}",) if arguments.chaos else ()
        alone, spread = (ran(suite, folder, *options, python=python) for options in ((), over))
        unlike += not is_as_known(suite, spread)
        print(line(name, suite, alone, spread), flush=True)
    return min(unlike, 1)


def line(name: str, suite: Suite, alone: Outcome, spread: Outcome) -> str:
    report = spread.report
    reached, state = (report.spread, len(report.of(Oracle.STATE))) if report else (0, 0)
    found = ", ".join(spread.real) or spread.output
    parts = [
        f"alone {alone.passed} passed, {alone.failed} failed",
        f"over replicas {spread.passed} passed, {spread.failed} failed, {len(spread.real)} real",
        f"{reached} tests reached two replicas, memory changed at {state} places",
        *([wrong(report.struck)] if report and report.struck else []),
        "as known" if is_as_known(suite, spread) else f"NOT as known: {found}",
    ]
    return f"{name}: {'; '.join(parts)}"


if __name__ == "__main__":
    sys.exit(main())
