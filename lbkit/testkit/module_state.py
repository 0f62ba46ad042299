"""Memory that the functions of a program write to, found by reading its source.

What is found is a container that begins in a module, in a factory, or in an object that a module makes, and
that a function changes later: each replica has one of its own. A table that nothing writes to is no state.

========================================  ===================================================
found                                     when a function
========================================  ===================================================
`CARTS = {}` in a module                  stores into it, or calls `append`, `update`, ...
`count = 0` in a module                   says `global count` and assigns
`carts = {}` in a factory                 inside of it does the same, and is a view or returned
`room = Room()` in a module               is a method of that class and changes `self.members`
a function with `lru_cache` or `cache`    (always)
========================================  ===================================================
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["State", "states"]

CONTAINERS = frozenset(
    {
        "dict",
        "list",
        "set",
        "bytearray",
        "defaultdict",
        "deque",
        "Counter",
        "OrderedDict",
        "WeakKeyDictionary",
    }
    | {"WeakValueDictionary", "WeakSet", "LRUCache", "TTLCache", "Queue", "SimpleQueue"}
)
CHANGES = frozenset(
    {"append", "appendleft", "extend", "insert", "pop", "popleft", "popitem", "remove", "clear", "sort"}
    | {"add", "discard", "update", "setdefault", "difference_update", "intersection_update", "put"}
    | {"put_nowait"}
)
CACHES = frozenset({"lru_cache", "cache", "cached"})

Function: TypeAlias = "ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    module: str
    name: str
    """`CARTS`, `create_app.carts`, or `room.members`."""

    kind: str
    """`dict`, `list`, ..., `global`, or `cache`."""

    line: int
    """Where it begins, in the file of its module."""

    written: tuple[str, int] | None = None
    """The module and the line that writes to it first; None for a cache, which writes itself."""


def states(sources: Mapping[str, str]) -> list[State]:
    """Of all modules together: one may write to what another one has. What does not parse is left out."""
    modules = {name: tree for name, text in sources.items() if (tree := _parsed(text)) is not None}
    writes = [write for name, tree in modules.items() for write in _writes(name, tree, modules)]
    found = [state for name, tree in modules.items() for state in _of_module(name, tree, writes)]
    return sorted(found, key=lambda state: (state.module, state.line))


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Write:
    """A function writes to `module.name`."""

    module: str
    name: str
    by: tuple[str, int]


def _of_module(name: str, tree: ast.Module, writes: list[Write]) -> Iterator[State]:
    first = {write.name: write.by for write in reversed(writes) if write.module == name}
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    for variable, value, line in _assigned(tree.body):
        kind = _kind(value)
        if variable in first and kind is not None:
            yield State(module=name, name=variable, kind=kind, line=line, written=first[variable])
        elif (made := _class_of(value, classes)) is not None:
            for attribute, attribute_kind, written in _kept_by(made):
                where = f"{variable}.{attribute}"
                yield State(module=name, name=where, kind=attribute_kind, line=line, written=(name, written))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(_last_name(each) in CACHES for each in node.decorator_list):
                yield State(module=name, name=node.name, kind="cache", line=node.lineno)
            yield from _of_factory(name, node)


def _of_factory(module: str, factory: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[State]:
    """Containers of a function that the functions inside of it write to: they live as long as those do.

    Those that are decorated, as views are, or returned, live on. A callback is gone with its call.
    """
    returned = {
        node.value.id
        for node in ast.walk(factory)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Name)
    }
    inner = [
        node
        for node in ast.walk(factory)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node is not factory
        if node.decorator_list or node.name in returned
    ]
    for variable, value, line in _assigned(factory.body):
        kind = _kind(value)
        if kind is None or kind == "global":
            continue
        lines = [at for node in inner for name, at in _changes(node) if name == variable]
        if lines:
            name = f"{factory.name}.{variable}"
            yield State(module=module, name=name, kind=kind, line=line, written=(module, min(lines)))


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr, int]]:
    for node in body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value, node.lineno
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value, node.lineno
        elif isinstance(node, ast.If | ast.Try):
            yield from _assigned(node.body)


def _kind(value: ast.expr) -> str | None:
    """What kind of container an expression makes; `global` for a plain value; None for all else."""
    literals = {
        ast.Dict: "dict",
        ast.DictComp: "dict",
        ast.List: "list",
        ast.ListComp: "list",
        ast.Set: "set",
    }
    if (kind := literals.get(type(value))) is not None:
        return kind
    if isinstance(value, ast.Call):
        name = _last_name(value.func)
        return name if name in CONTAINERS else None
    return "global" if isinstance(value, ast.Constant) else None


def _writes(module: str, tree: ast.Module, modules: Mapping[str, ast.Module]) -> Iterator[Write]:
    names, others = _imported(module, tree, modules)
    for node in ast.walk(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        for name, line in _changes(node):
            home, _, inside = name.rpartition(".")
            if home in others:
                yield Write(others[home], inside, (module, line))
            elif not home:
                where, original = names.get(name, (module, name))
                yield Write(where, original, (module, line))


def _imported(
    module: str, tree: ast.Module, modules: Mapping[str, ast.Module]
) -> tuple[dict[str, tuple[str, str]], dict[str, str]]:
    """The names that come from another of the modules, and the names under which others are known here."""
    names: dict[str, tuple[str, str]] = {}
    others: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            others |= {each.asname or each.name: each.name for each in node.names if each.name in modules}
        elif isinstance(node, ast.ImportFrom):
            home = _home(module, node, modules)
            for each in node.names:
                if f"{home}.{each.name}" in modules:
                    others[each.asname or each.name] = f"{home}.{each.name}"
                elif home in modules:
                    names[each.asname or each.name] = (home, each.name)
    return names, others


def _home(module: str, node: ast.ImportFrom, modules: Mapping[str, ast.Module]) -> str:
    if not node.level:
        return node.module or ""
    is_package = any(name.startswith(f"{module}.") for name in modules)
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _changes(function: Function) -> Iterator[tuple[str, int]]:
    """Names from outside of this function that it writes to, with the line; `module.NAME` for attributes."""
    body = function.body if isinstance(function.body, list) else [function.body]
    own = {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}
    rebound = {name for node in _own_nodes(body) if isinstance(node, ast.Global) for name in node.names}
    local = {
        node.id
        for node in _own_nodes(body)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del)
    }
    hidden = (own | local) - rebound
    for node in _own_nodes(body):
        for name in _changed(node, rebound):
            if name.partition(".")[0] not in hidden:
                yield name, node.lineno  # type: ignore[attr-defined]


def _own_nodes(body: list[ast.stmt] | list[ast.expr]) -> Iterator[ast.AST]:
    """The nodes of a body, without those of the functions inside of it."""
    for node in body:
        yield node
        if not isinstance(node, FUNCTIONS):
            yield from _own_nodes(list(ast.iter_child_nodes(node)))  # type: ignore[arg-type]


def _changed(node: ast.AST, rebound: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
        yield from _named(node.value)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CHANGES:
        yield from _named(node.func.value)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in rebound:
        yield node.id


def _named(value: ast.expr) -> Iterator[str]:
    """`CARTS`, or `cart.CARTS`; of `CARTS[user]` what is written to is still CARTS."""
    while isinstance(value, ast.Subscript):
        value = value.value
    if isinstance(value, ast.Name):
        yield value.id
    elif isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        yield f"{value.value.id}.{value.attr}"


def _class_of(value: ast.expr, classes: Mapping[str, ast.ClassDef]) -> ast.ClassDef | None:
    return classes.get(_last_name(value.func) or "") if isinstance(value, ast.Call) else None


def _kept_by(made: ast.ClassDef) -> Iterator[tuple[str, str, int]]:
    """Containers of an object that its methods write to: name, kind, line."""
    methods = [node for node in made.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    begun = [node for method in methods if method.name == "__init__" for node in method.body]
    for node in begun:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        kind = _kind(value) if isinstance(value, ast.expr) else None
        if not (isinstance(target, ast.Attribute) and kind not in (None, "global")):
            continue
        lines = [
            at
            for method in methods
            if method.name != "__init__"
            for name, at in _self_changes(method)
            if name == f"self.{target.attr}"
        ]
        if lines and kind is not None:
            yield target.attr, kind, min(lines)


def _self_changes(method: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, int]]:
    for node in ast.walk(method):
        for name in _changed(node, set()):
            yield name, node.lineno  # type: ignore[attr-defined]


def _last_name(node: ast.expr) -> str | None:
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else None
