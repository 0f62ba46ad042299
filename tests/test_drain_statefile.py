"""The state file that the processes of a replica share: real files, and real processes that come and go."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lbkit.drain import DrainTimings
from lbkit.statefile import Hook, StateFile, StateFileError, folder, standing

TIMINGS = DrainTimings(pre_stop_delay=2.0, drain_timeout=9.0)
MAKE = (
    "import sys; from pathlib import Path; from lbkit.drain import DrainTimings;"
    "from lbkit.statefile import Hook, StateFile;"
    "StateFile.create(Path(sys.argv[1]), hook=Hook.LAUNCHER, timings=DrainTimings());"
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lbkit" / "state"


def create(path: Path) -> StateFile:
    return StateFile.create(path, hook=Hook.LAUNCHER, timings=TIMINGS)


def left_behind(path: Path) -> None:
    """By a process that is gone."""
    subprocess.run([sys.executable, "-c", MAKE, str(path)], check=True)


def test_whoever_opens_it_finds_what_the_owner_wrote(path: Path) -> None:
    owner = create(path)
    shared = StateFile.open(path)
    assert (shared.owner, shared.hook, shared.timings) == (os.getpid(), Hook.LAUNCHER, TIMINGS)
    owner.signalled(12.5)
    owner.handed_over()
    orders = shared.orders
    assert (orders.operator_at, orders.signal_at, orders.handed_over) == (None, 12.5, True)


def test_it_and_its_folder_belong_to_the_user_alone(path: Path) -> None:
    create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["state"]


def test_an_operators_order_does_not_restart_the_clock_and_can_be_taken_back(path: Path) -> None:
    create(path)
    operator = StateFile.open(path)
    operator.drain(5.0)
    operator.drain(6.0)
    assert operator.orders.operator_at == 5.0
    assert operator.undrain() is True
    assert operator.orders.operator_at is None


def test_a_signals_drain_cannot_be_taken_back(path: Path) -> None:
    owner = create(path)
    owner.signalled(1.0)
    owner.signalled(2.0)
    assert StateFile.open(path).undrain() is False
    assert owner.orders.signal_at == 1.0


def test_requests_are_summed_over_the_processes_that_live(path: Path) -> None:
    owner = create(path)
    owner.publish(3)
    script = (
        "import sys; from pathlib import Path; from lbkit.statefile import StateFile;"
        "file = StateFile.open(Path(sys.argv[1])); file.publish(4);"
        "print(file.in_flight(), flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "7\n"
        assert owner.in_flight() == 7
        assert owner.in_flight(but=os.getpid()) == 4
        assert sorted(owner.processes) == sorted([os.getpid(), other.pid])
        other.communicate("")
    assert owner.in_flight() == 3
    assert owner.processes == [os.getpid()]


def test_a_fork_takes_a_place_of_its_own(path: Path) -> None:
    owner = create(path)
    owner.publish(1)
    child = os.fork()
    if not child:
        owner.publish(5)
        os._exit(0 if owner.in_flight() == 6 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert owner.in_flight() == 1


def test_one_that_was_left_behind_is_refused_and_replaced(path: Path) -> None:
    left_behind(path)
    with pytest.raises(StateFileError, match="was left behind: its process is gone"):
        StateFile.open(path)
    assert create(path).owner == os.getpid()


def test_one_that_is_in_use_is_not_replaced(path: Path) -> None:
    script = MAKE + "print('made', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "made\n"
        with pytest.raises(StateFileError, match=f"is in use by process {other.pid}"):
            create(path)
        other.communicate("")


@pytest.mark.parametrize("mode", [0o644, 0o620, 0o602])
def test_one_that_others_may_touch_is_refused(path: Path, mode: int) -> None:
    create(path)
    path.chmod(mode)
    with pytest.raises(StateFileError, match=r"need .* as a file of our own with mode 0600"):
        StateFile.open(path)


def test_a_link_is_refused(path: Path, tmp_path: Path) -> None:
    create(path)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(StateFileError, match="cannot use the state file"):
        StateFile.open(link)


def test_a_folder_that_others_may_write_to_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o777)
    with pytest.raises(StateFileError, match=r"need .* as a folder that only we can write to"):
        create(path)


@pytest.mark.parametrize("content", [b"", b"precious", b"x" * 1120])
def test_what_is_no_state_file_is_refused_and_never_removed(path: Path, content: bytes) -> None:
    path.parent.mkdir(mode=0o700)
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StateFileError, match="is no state file of this version"):
        create(path)
    assert path.read_bytes() == content


def test_a_new_one_sweeps_away_what_killed_processes_left_and_nothing_else(path: Path) -> None:
    left_behind(path.with_name("4711"))
    (path.parent / "notes").write_text("precious")
    create(path)
    assert sorted(each.name for each in path.parent.iterdir()) == ["notes", "state"]


def test_files_that_were_left_behind_are_swept_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    left_behind(folder() / "1")
    mine = create(folder() / "2")
    assert [each.owner for each in standing()] == [os.getpid()]
    assert [each.name for each in folder().iterdir()] == ["2"]
    mine.remove()
    assert standing() == []
