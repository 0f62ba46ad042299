"""What a user gets from the package index: the wheel, in a clean environment, without any extra."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALONE = """
import sys, lbkit, lbkit.asgi, lbkit.wsgi, lbkit.balancer
from importlib.metadata import version
optional = {"flask", "werkzeug", "starlette", "fastapi", "click", "uvicorn", "redis", "httpx"}
assert not optional & set(sys.modules), optional & set(sys.modules)
for name in lbkit.__all__:
    getattr(lbkit, name)
print(lbkit.__file__, version("lbkit-web"))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder), cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel))
    return python


def test_the_wheel_holds_the_library_and_the_plugins_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    version = wheel.name.split("-")[1]
    assert tops == {
        "lbkit",
        "lbkit_flask",
        "lbkit_starlette",
        "lbkit_fastapi",
        f"lbkit_web-{version}.dist-info",
    }
    for package in ("lbkit", "lbkit_flask", "lbkit_starlette", "lbkit_fastapi"):
        assert f"{package}/__init__.py" in names
        assert f"{package}/py.typed" in names, "type checkers ignore a package without it"
    assert {f"lbkit/stores/{script}.lua" for script in ("commit", "index", "unlock")} <= set(names)


def test_without_extras_lbkit_imports_alone_and_needs_two_libraries(clean_python: Path) -> None:
    said = run(str(clean_python), "-I", "-W", "error", "-c", ALONE)
    assert str(clean_python.parent.parent) in said
    installed = run(str(clean_python), "-m", "pip", "list", "--format=freeze").lower()
    names = {line.split("==")[0] for line in installed.split()} - {"pip", "setuptools", "wheel"}
    assert names == {"lbkit-web", "itsdangerous", "psutil"}


def test_a_missing_extra_is_named(clean_python: Path) -> None:
    done = subprocess.run(
        [clean_python.parent / "lbkit", "serve", "shop:app"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "pip install 'lbkit-web[serve]'" in done.stderr


def test_sessions_in_redis_without_redis_say_which_extra_is_missing(clean_python: Path) -> None:
    code = "from lbkit.stores import store_from; store_from('memory://'); store_from('redis://cache')"
    done = subprocess.run([clean_python, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("it comes with: pip install 'lbkit-web[redis]'\n")


@pytest.mark.parametrize("plugin", ["lbkit_flask", "lbkit_starlette", "lbkit_fastapi"])
def test_a_plugin_without_its_framework_says_which_library_is_missing(
    clean_python: Path, plugin: str
) -> None:
    done = subprocess.run([clean_python, "-c", f"import {plugin}"], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"lbkit-web[{plugin.removeprefix('lbkit_')}]" in done.stderr


def run(*command: str, cwd: Path | None = None) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
