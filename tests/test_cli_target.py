"""TARGET: what it names, what is found there, and the one line that says what is wrong."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from lbkit.cli.target import Source, find, one_line, parse, where
from lbkit.errors import StartupError, TargetError

WSGI_APP = "def app(environ, start_response): ...\n"
FACTORY = "def create_app():\n    async def app(scope, receive, send): ...\n    return app\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: str, text: str = "") -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(dedent(text))
    return file


def found(text: str, *, factory: bool = False) -> Source:
    return find(parse(text), factory=factory)


def refusal(text: str, *, factory: bool = False) -> str:
    with pytest.raises(TargetError) as caught:
        found(text, factory=factory)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("shop.web:app", "shop.web:app"),
        ("shop.web:create_app", "shop.web:create_app"),
        ("shop.web:Holder.app", "shop.web:Holder.app"),
        ("shop.web", "shop.web:app"),
        ("shop/web.py", "shop.web:app"),
        ("./shop/web.py:create_app", "shop.web:create_app"),
        ("shop/", "shop:application"),
        ("shop/__init__.py", "shop:application"),
    ],
)
def test_a_target_is_a_module_or_a_file_with_a_name_or_without(target: str, name: str) -> None:
    write("shop/__init__.py", "from shop.web import app as application")
    write("shop/web.py", WSGI_APP + FACTORY + "class Holder:\n    app = staticmethod(app)\n")
    assert found(target).name == name


def test_a_file_inside_a_package_keeps_its_package_imports() -> None:
    write("src/shop/__init__.py")
    write("src/shop/goods/__init__.py")
    write("src/shop/prices.py", "TEA = 3")
    write("src/shop/goods/web.py", "from ..prices import TEA\nfrom shop.prices import TEA\n" + WSGI_APP)
    target = parse("src/shop/goods/web.py")
    assert (target.module, target.root) == ("shop.goods.web", Path("src").resolve())
    assert find(target).name == "shop.goods.web:app"


def test_the_folder_of_a_plain_file_is_where_its_imports_are_found() -> None:
    write("deep/down/sibling_of_app.py", "NAME = 'sibling'")
    write("deep/down/lonely.py", "from sibling_of_app import NAME\n" + WSGI_APP)
    assert found("deep/down/lonely.py").name == "lonely:app"


def test_modules_are_looked_for_in_the_app_dir_before_anything_installed() -> None:
    write("src/httpbin.py", WSGI_APP)
    assert find(parse("httpbin", app_dir=Path("src"))).name == "httpbin:app"
    assert sys.modules["httpbin"].__file__ == str(Path("src/httpbin.py").resolve())


def test_without_a_name_app_comes_before_application_and_create_app() -> None:
    write("all_three.py", FACTORY + WSGI_APP + "application = app\n")
    write("two.py", FACTORY + WSGI_APP.replace("app", "application"))
    write("one.py", FACTORY)
    assert [found(name).name for name in ("all_three", "two", "one")] == [
        "all_three:app",
        "two:application",
        "one:create_app",
    ]


def test_a_factory_is_called_once_for_each_replica_and_an_object_is_shared() -> None:
    write("both.py", FACTORY + WSGI_APP)
    shared, made = found("both:app"), found("both:create_app")
    assert not shared.factory
    assert shared.make() is shared.make()
    assert made.factory
    assert made.make() is not made.make()


@pytest.mark.parametrize(
    ("definition", "factory"),
    [
        ("def it(): ...", True),
        ("def it(config=None, debug=False): ...", True),
        ("def it(config=None, debug=False, more=None): ...", True),
        ("def it(*arguments, **options): ...", True),
        ("class it:\n    def __call__(self, environ, start_response): ...", True),
        ("class Made:\n    def __call__(self, environ, start_response): ...\nit = Made()", False),
        ("class Made:\n    async def __call__(self, scope, receive, send): ...\nit = Made()", False),
        ("def it(environ, start_response): ...", False),
        ("async def it(scope, receive, send): ...", False),
        ("async def it(*message): ...", False),
    ],
)
def test_whatever_needs_no_arguments_is_a_factory(definition: str, factory: bool) -> None:
    write("module_of_it.py", definition)
    assert found("module_of_it:it").factory is factory


def test_whoever_insists_on_a_factory_does_not_get_an_app_object() -> None:
    write("insisting.py", FACTORY + WSGI_APP)
    assert found("insisting:create_app", factory=True).factory
    assert refusal("insisting:app", factory=True) == (
        "insisting:app(environ, start_response) is no factory: need one without required parameters"
    )


def test_a_module_that_is_not_there_is_told_from_one_that_its_code_needs() -> None:
    write("shop/__init__.py")
    write("shop/web.py", "x = 1\nimport no_such_library.deep\n")
    assert refusal("shpo") == (
        f"there is no module shpo in {Path.cwd()} or among the installed packages; perhaps you mean shop"
    )
    assert refusal("shop.wbe:app") == "there is no module wbe in the package shop; perhaps you mean web"
    assert refusal("shop.web:app") == (
        "shop.web needs the module no_such_library, which is not installed (shop/web.py:2)"
    )


def test_a_submodule_that_the_code_needs_is_named_in_full() -> None:
    write("shop/__init__.py", "import shop.missing_part\n")
    assert (
        refusal("shop")
        == "shop needs the module shop.missing_part, which is not installed (shop/__init__.py:1)"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (1,\n", "SyntaxError in broken_one.py:1: '(' was never closed"),
        ("if x:\npass\n", "IndentationError in broken_one.py:2: expected an indented block"),
        (
            "import os\nos.environ['NOT_SET']\n",
            "importing broken_one raised KeyError: 'NOT_SET' (broken_one.py:2)",
        ),
        ("raise ValueError('two\\nlines')", "raised ValueError: two lines (broken_one.py:1)"),
        ("import sys\nsys.exit('bye')", "importing broken_one raised SystemExit: bye (broken_one.py:2)"),
        ("from os import nothing", "ImportError: cannot import name 'nothing' from 'os'"),
        ("import json\njson.loads('{')", "(broken_one.py:2)"),
    ],
)
def test_an_error_in_the_module_is_told_with_the_line_of_the_developers_own_code(
    text: str, message: str
) -> None:
    write("broken_one.py", text)
    assert message in refusal("broken_one.py")


def test_a_syntax_error_in_an_imported_module_names_that_module() -> None:
    write("fine_itself.py", "import not_fine_at_all\n" + WSGI_APP)
    write("not_fine_at_all.py", "\n\ndef f(:\n")
    assert "SyntaxError in not_fine_at_all.py:3" in refusal("fine_itself")


def test_a_missing_attribute_is_told_with_those_that_are_close() -> None:
    write("named.py", "application = 1\nappliance = 2\nclass Holder:\n    site = 3\n")
    assert (
        refusal("named:aplication")
        == "named has no attribute aplication; perhaps you mean application or appliance"
    )
    assert refusal("named:Holder.sites") == "named.Holder has no attribute sites; perhaps you mean site"
    assert refusal("named:zzz") == "named has no attribute zzz"


def test_a_module_without_a_usual_name_is_told_with_the_app_that_it_has() -> None:
    write("unusual.py", "class Site:\n    def __call__(self, environ, start_response): ...\nsite = Site()\n")
    assert (
        refusal("unusual") == "unusual has no app, application or create_app; perhaps you mean unusual:site"
    )


@pytest.mark.parametrize("thing", ["42", "'text'", "None", "print", "lambda scope: None"])
def test_what_is_no_app_is_refused_with_the_rule(thing: str) -> None:
    write("thing_of_it.py", f"app = {thing}")
    refused = pytest.raises(
        TargetError, match=r"^thing_of_it:app( is not an app:|\(\) returned no app:) .*an ASGI app takes"
    )
    with refused:
        found("thing_of_it").make()


def test_an_async_factory_is_refused() -> None:
    write("eager.py", "async def create_app(): ...")
    assert refusal("eager").startswith("eager:create_app is not an app")


def test_a_factory_that_needs_arguments_or_returns_no_app_is_refused() -> None:
    write("bad_factories.py", "def needy(config): ...\ndef empty(): return None\nnumber = 42\n")
    assert refusal("bad_factories:needy", factory=True) == (
        "bad_factories:needy(config) is no factory: need one without required parameters"
    )
    assert refusal("bad_factories:number", factory=True).startswith("bad_factories:number is not callable")
    with pytest.raises(TargetError, match=r"bad_factories:empty\(\) returned no app: None is not callable"):
        found("bad_factories:empty").make()


def test_a_factory_that_exits_is_an_error_and_not_the_end() -> None:
    write("exiting.py", "import sys\ndef create_app(): sys.exit('no database')")
    with pytest.raises(RuntimeError, match="SystemExit: no database"):
        found("exiting").make()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such.py", "there is no file no_such.py"),
        ("folder", "there is no module folder"),
        ("folder/", "folder is a folder without __init__.py: need a .py file"),
        ("folder/notes.txt", "need a path to a .py file, got folder/notes.txt"),
        (
            "folder/v1.2.py",
            "need a file name that Python can import, without another dot, got folder/v1.2.py",
        ),
        ("shop:", "need a name such as app after the colon, got '' in 'shop:'"),
        (
            "shop:create_app()",
            "need a name such as app after the colon, got 'create_app()' in 'shop:create_app()'",
        ),
        ("shop web", "need package.module:app or a path to a .py file, got 'shop web'"),
        ("", "need package.module:app or a path to a .py file, got ''"),
        ("..shop", "need package.module:app or a path to a .py file, got '..shop'"),
    ],
)
def test_a_target_that_cannot_be_one_is_refused_with_the_rule(text: str, message: str) -> None:
    write("folder/notes.txt")
    write("folder/v1.2.py")
    if text == "folder":
        # Python imports any folder as an empty namespace package.
        assert refusal(text) == "folder has no app, application or create_app"
    else:
        assert message in refusal(text)


def test_a_file_whose_name_is_taken_is_not_confused_with_the_other_module() -> None:
    write("click.py", WSGI_APP)
    import click

    assert refusal("click.py") == f"need a file name that is not taken: click is {click.__file__}"


def test_where_names_the_developers_line_and_not_the_librarys() -> None:
    write("calls_library.py", "import json\ndef create_app():\n    return json.loads('{')\n")
    with pytest.raises(ValueError, match="property name") as caught:
        found("calls_library").make()
    assert where(caught.value) == "calls_library.py:3"


def test_one_line_has_no_newline() -> None:
    error = StartupError("web1", "a\n\tb\r\nc")
    assert not re.search(r"[\n\r\t]", one_line(error))
