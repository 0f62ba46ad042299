"""`lbkit doctor TARGET`: what would differ between replicas, before there are any."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import click

from lbkit.errors import ConfigError
from lbkit.testkit.checkup import Checkup
from lbkit.testkit.diagnosis import Diagnosis, Level, Remark, diagnose
from lbkit.testkit.module_state import states

__all__ = ["doctor"]

LONGEST_BOOT = 120.0
"""Seconds."""

TITLES = {
    "replicas": "from one boot to the next",
    "memory": "memory that requests write to",
    "health": "health",
    "sessions": "sessions",
}
SIGNS = {Level.WRONG: ("!", "red"), Level.NOTE: ("-", "yellow"), Level.FINE: ("+", "green")}


@click.command()
@click.argument("target")
@click.option("--app-dir", type=click.Path(path_type=Path), help="Where modules are looked for, if not here.")
@click.option(
    "--private", multiple=True, metavar="PACKAGE", help="The app's own packages, if they are installed."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(
    context: click.Context, target: str, app_dir: Path | None, private: tuple[str, ...], as_json: bool
) -> None:
    """Boot an app twice in fresh interpreters, and say what would differ between its replicas.

    TARGET is what `lbkit serve` takes. Secrets are compared and never shown. Exit code 0 when nothing is
    wrong, 1 when something is, 2 when the app cannot be made.
    """
    first, second = (_boot(target, app_dir, private, number) for number in (1, 2))
    sources = {name: _source(file) for name, file in first.modules.items()}
    found = diagnose(first, second, states=states(sources), sources=sources)
    click.echo(_as_json(found) if as_json else _as_text(found))
    context.exit(0 if found.healthy else 1)


def _boot(target: str, app_dir: Path | None, private: tuple[str, ...], number: int) -> Checkup:
    """In a fresh interpreter, with another hash seed each time."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "checkup.json")
        module = [sys.executable, "-m", "lbkit.testkit.checkup"]
        command = [*module, target, str(file), str(app_dir or ""), *private]
        path = os.pathsep.join(filter(None, sys.path))
        environ = {**os.environ, "PYTHONHASHSEED": str(number), "PYTHONPATH": path}
        try:
            done = subprocess.run(  # noqa: S603 (our own interpreter)
                command, env=environ, capture_output=True, text=True, timeout=LONGEST_BOOT, check=False
            )
        except subprocess.TimeoutExpired:
            raise ConfigError(f"{target} did not boot in {LONGEST_BOOT:g} s") from None
        if not file.exists():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ConfigError(f"the process that made {target} ended with code {done.returncode}: {last}")
        seen = Checkup.read(file)
    if seen.error is not None:
        raise ConfigError(seen.error)
    return seen


def _source(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _as_text(found: Diagnosis) -> str:
    seconds = " and ".join(f"{each:.2f} s" for each in found.seconds)
    lines = [f"{found.name}  {found.interface}, {found.framework}; booted twice, in {seconds}"]
    for subject, title in TITLES.items():
        lines += ["", click.style(title, bold=True), *map(_told, found.about(subject))]
    wrong = len(found.of(Level.WRONG))
    verdict = "nothing would differ between replicas" if not wrong else f"{wrong} to put right"
    return "\n".join([*lines, "", click.style(verdict, fg="red" if wrong else "green", bold=True)])


def _told(remark: Remark) -> str:
    sign, colour = SIGNS[remark.level]
    lines = [f"  {click.style(sign, fg=colour)} {_relative(remark.what)}"]
    if remark.where is not None:
        lines.append(f"      {_relative(remark.where)}")
    if remark.remedy is not None and remark.level is not Level.FINE:
        lines.append(f"      {remark.remedy}")
    return "\n".join(lines)


def _relative(text: str) -> str:
    return text.replace(f"{Path.cwd()}{os.sep}", "")


def _as_json(found: Diagnosis) -> str:
    values = asdict(found)
    values["healthy"] = found.healthy
    return json.dumps(values, default=lambda value: value.value, indent=1)
