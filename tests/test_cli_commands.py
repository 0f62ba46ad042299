"""The command line as a whole: what it says without a command, for a mistake, and without its extra."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import click
import pytest
from click.testing import CliRunner

from lbkit.cli import main
from lbkit.errors import ConfigError, MissingExtra


@pytest.fixture
def command_that_fails() -> Iterator[Callable[[Exception], None]]:
    """Registers `fail` with an error to raise, for one test."""

    def register(error: Exception) -> None:
        @main.command()
        def fail() -> None:
            raise error

    yield register
    main.commands.pop("fail", None)


def test_without_a_command_it_says_which_there_are() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 0
    # The width of the column follows the longest name.
    assert "serve Run an app as several replicas" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["sevre"], "Error: No such command 'sevre'."),
        (["serve"], "Error: Missing argument 'TARGET'."),
        (
            ["serve", "x", "--port", "http"],
            "Error: Invalid value for '--port': 'http' is not a valid integer.",
        ),
    ],
)
def test_a_mistake_in_the_command_is_one_line_without_the_usage(arguments: list[str], line: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(line)


def test_an_error_of_lbkit_is_one_line_in_any_command(
    command_that_fails: Callable[[Exception], None],
) -> None:
    command_that_fails(ConfigError("need this,\n  got that"))
    result = CliRunner().invoke(main, ["fail"])
    assert (result.exit_code, result.stderr) == (2, "Error: need this, got that\n")


def test_a_bug_is_not_passed_off_as_a_mistake(
    command_that_fails: Callable[[Exception], None],
) -> None:
    command_that_fails(ZeroDivisionError())
    assert isinstance(CliRunner().invoke(main, ["fail"]).exception, ZeroDivisionError)


def test_a_caller_in_python_gets_the_error_itself() -> None:
    with pytest.raises(ConfigError, match=r"need --replicas >= 1, got 0"):
        main(["serve", "x", "--replicas", "0"], standalone_mode=False)
    with pytest.raises(click.UsageError):
        main(["serve"], standalone_mode=False)


@pytest.mark.parametrize("library", ["click", "rich", "uvicorn"])
def test_without_the_extra_the_command_says_what_to_install(library: str) -> None:
    program = f"import sys; sys.modules[{library!r}] = None; sys.argv[1:] = ['serve', 'shop']; import runpy; "
    ran = subprocess.run(
        [sys.executable, "-c", f"{program} runpy.run_module('lbkit', run_name='__main__')"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == f"Error: {MissingExtra(library, extra='serve')}\n"
