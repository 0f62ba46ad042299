"""`lbkit doctor`: what two boots and the source say, before there are replicas."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lbkit.cli import main
from lbkit.testkit.module_state import State, states
from tests.e2e.serving import ROOT

CARTS = """
import functools
CARTS = {}
PRICES = {"tea": 3}
count = 0

class Room:
    def __init__(self):
        self.members: list = []
        self.name = "tea"
    def join(self, who):
        self.members.append(who)
    def show(self):
        return list(self.members)

room = Room()

def add(user, sku):
    global count
    count += 1
    local = []
    local.append(sku)
    CARTS[user]["items"] = local
    return PRICES[sku]

@functools.lru_cache
def settings():
    return {}
"""
SHOP = """
from . import carts
from .carts import CARTS as ALL

LOG = set()
NAMES = []

def forget(user, NAMES):
    ALL.pop(user)
    carts.PRICES.clear()
    NAMES.append(user)

def create_app():
    app, visits, tmp = App(), {}, []
    sessions = {}
    tmp.append(1)
    @app.get("/")
    def view():
        sessions["a"] = 1
        LOG.add(1)
    def callback():
        tmp.append(1)
    run(callback)
    return app
"""


def found(**sources: str) -> set[tuple[str, str]]:
    return {(f"{state.module}.{state.name}", state.kind) for state in states(sources)}


def test_memory_is_state_when_a_function_writes_to_it() -> None:
    assert found(carts=CARTS) == {
        ("carts.CARTS", "dict"),
        ("carts.count", "global"),
        ("carts.room.members", "list"),
        ("carts.settings", "cache"),
    }


def test_another_module_may_write_under_another_name() -> None:
    names = {name for name, _ in found(**{"shop": SHOP, "shop.carts": CARTS})}
    assert names == {
        "shop.LOG",
        "shop.create_app.sessions",
        "shop.carts.CARTS",
        "shop.carts.PRICES",
        "shop.carts.count",
        "shop.carts.room.members",
        "shop.carts.settings",
    }


def test_state_is_told_with_its_line_and_the_line_that_writes() -> None:
    state = next(each for each in states({"carts": CARTS}) if each.name == "CARTS")
    assert state == State(module="carts", name="CARTS", kind="dict", line=3, written=("carts", 23))


def test_source_that_does_not_parse_is_left_out() -> None:
    assert states({"broken": "def ("}) == []


@dataclass
class Done:
    code: object
    out: str
    err: str


@pytest.fixture
def doctor(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    def run(*arguments: str, cwd: Path = ROOT) -> Done:
        monkeypatch.chdir(cwd)
        with pytest.raises(SystemExit) as done:
            main(["doctor", *arguments], prog_name="lbkit")
        return Done(done.value.code, *capfd.readouterr())

    return run


def test_the_sample_shop_is_fine_and_says_so(doctor: Callable[..., Done]) -> None:
    done = doctor("sample_apps/flask_shop/app.py")
    assert done.code == 0, done.out + done.err
    assert "nothing would differ between replicas" in done.out
    assert "+ /health 200, /health/ready 200, /health/live 200" in done.out


def test_the_wrong_shop_is_told_what_is_wrong_and_where(doctor: Callable[..., Done]) -> None:
    done = doctor("sample_apps/flask_shop/wrong.py", "--json")
    assert done.code == 1, done.err
    told = json.loads(done.out)
    wrong = {
        each["what"].split(" ")[0]: each["where"] for each in told["remarks"] if each["level"] == "wrong"
    }
    assert set(wrong) == {
        'app.config["SECRET_KEY"]',
        "flask_shop.wrong.SECRET_KEY",
        "flask_shop.wrong.CARTS",
    }
    source = (ROOT / "sample_apps/flask_shop/wrong.py").read_text().splitlines()
    places = {name: source[int(where.rpartition(":")[2]) - 1] for name, where in wrong.items()}
    assert places['app.config["SECRET_KEY"]'].startswith("SECRET_KEY = os.urandom")
    assert places["flask_shop.wrong.CARTS"].startswith("CARTS: ")


def test_an_asgi_app_without_health_and_with_a_weak_key(doctor: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "tk_api.py").write_text(
        "import uuid\n"
        "from starlette.applications import Starlette\n"
        "from starlette.middleware import Middleware\n"
        "from starlette.middleware.sessions import SessionMiddleware\n"
        "INSTANCE = str(uuid.uuid4())\n"
        "app = Starlette(middleware=[Middleware(SessionMiddleware, secret_key='dev')])\n"
    )
    done = doctor("tk_api:app", cwd=tmp_path)
    assert done.code == 1
    assert "no /health: a balancer cannot tell a replica that starts, hangs or leaves" in done.out
    assert "SessionMiddleware(secret_key=...) is weak: it is the first word" in done.out
    assert "- tk_api.INSTANCE differs from boot to boot" in done.out
    assert "dev'" not in done.out


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (None, "Error: there is no module tk_bad in"),
        ("raise OSError('no database')", "Error: importing tk_bad raised OSError: no database"),
        ("def create_app():\n    raise OSError('no database')", "Error: making the app raised OSError"),
        ("import os\nos._exit(7)", "Error: the process that made tk_bad ended with code 7"),
    ],
)
def test_an_app_that_cannot_be_made_is_one_line_and_exit_code_2(
    doctor: Callable[..., Done], tmp_path: Path, source: str | None, told: str
) -> None:
    if source is not None:
        (tmp_path / "tk_bad.py").write_text(source)
    done = doctor("tk_bad", cwd=tmp_path)
    assert done.code == 2
    assert done.err.startswith(told)
    assert done.err.count("\n") == 1
