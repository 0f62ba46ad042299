"""Who may import whom, read from the source itself. The rules are the house's: decide / carry / wire."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CARRY = {
    "asgi",
    "wsgi",
    "stores",
    "checks",
    "children",
    "probes",
    "metrics",
    "monitor",
    "side_port",
    "threads",
    "signals",
    "adapters",
    "departure",
    "listeners",
    "process",
    "statefile",
    "gunicorn",
}
TOP = {"cli", "testkit", "healthcheck", "__main__"}
DOOR = "__init__"  # of lbkit itself: it names what the others promise
WAITS = {"asyncio", "socket", "ssl", "time", "threading", "subprocess", "selectors", "queue"}
FRAMEWORKS = {"flask", "werkzeug", "starlette", "fastapi"}


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path, *, only_at_the_top: bool = False) -> set[str]:
    """Dotted names of every module that the file imports, relative ones made absolute."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if only_at_the_top else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: say where the import comes from"
            names.add(node.module or "")
    return names


def room(path: Path) -> str:
    """The room of the house that a file of lbkit/ is in: asgi, health, sticky, ..."""
    return path.relative_to(ROOT / "lbkit").parts[0].removesuffix(".py")


def rooms(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("lbkit.")}


DECIDE = [path for path in files("lbkit") if room(path) not in CARRY | TOP | {DOOR}]


@pytest.mark.parametrize("path", DECIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_deciding_module_reads_no_clock_and_touches_no_socket(path: Path) -> None:
    names = imports(path)
    waits = {name.split(".")[0] for name in names} & WAITS
    # One plain lock around integers is no waiting.
    assert waits <= {"threading"}
    assert not rooms(names) & (CARRY | TOP)
    outside = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    assert outside <= {"lbkit", "itsdangerous", "_typeshed"}  # the last one exists for type checkers only


@pytest.mark.parametrize("path", files("lbkit"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_library_imports_no_framework_and_nothing_imports_the_tools(path: Path) -> None:
    names = imports(path)
    assert not {name.split(".")[0] for name in names} & FRAMEWORKS
    if room(path) not in TOP:
        assert not rooms(names) & TOP


def test_the_two_gateways_do_not_know_each_other() -> None:
    for one, other in (("asgi", "wsgi"), ("wsgi", "asgi")):
        for path in files(f"lbkit/{one}"):
            assert other not in rooms(imports(path)), path


def test_only_one_file_imports_redis() -> None:
    users = {path for path in files("lbkit") if "redis" in {name.split(".")[0] for name in imports(path)}}
    assert users <= {ROOT / "lbkit/stores/redis.py", ROOT / "lbkit/checks/redis.py", ROOT / "lbkit/checks.py"}


PLUGINS = {
    "lbkit_flask": {"flask", "werkzeug"},
    "lbkit_starlette": {"starlette"},
    "lbkit_fastapi": {"fastapi", "lbkit_starlette"},
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_imports_its_own_framework_alone(plugin: str) -> None:
    for path in files(f"integrations/{plugin}"):
        outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
        assert outside <= {"lbkit", plugin} | PLUGINS[plugin], path


@pytest.mark.parametrize(
    "path", files("integrations") + files("sample_apps"), ids=lambda path: path.parent.name
)
def test_plugins_and_samples_use_public_names_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lbkit"):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private
            assert not any(part.startswith("_") for part in (node.module or "").split("."))


def test_only_plugins_live_under_integrations() -> None:
    """A folder `redis` there would make `import redis` succeed where redis is not installed."""
    folders = {path.name for path in (ROOT / "integrations").iterdir() if path.is_dir()}
    assert folders - {"__pycache__"} == set(PLUGINS)


def test_no_module_is_named_after_nothing() -> None:
    nothing = {"utils", "helpers", "common", "base", "core", "manager", "misc"}
    assert not nothing & {path.stem for path in files("lbkit") + files("integrations")}
