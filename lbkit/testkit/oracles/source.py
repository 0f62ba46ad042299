"""Where a name is defined: `shop.cart.CARTS` is `shop/cart.py:12`."""

from __future__ import annotations

import ast
import os
from functools import lru_cache
from types import ModuleType
from typing import Any

__all__ = ["file_of", "place", "where"]

HERE = os.getcwd()


def file_of(module: ModuleType | None) -> str | None:
    return getattr(module, "__file__", None)


def where(file: str | None, path: str) -> str | None:
    """`file:line` of a dotted name in a module's file, or of the first part of it that can be found."""
    if not file:
        return None
    lines = definitions(file)
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if (line := lines.get(".".join(parts[:end]))) is not None:
            return place(file, line)
    return place(file, 1)


def place(file: str, line: int) -> str:
    """Told from here; from where the run was started, if a test has gone elsewhere; else in full."""
    shorts = [os.path.relpath(file, start) for start in (os.getcwd(), HERE)]
    return f"{next((short for short in shorts if not short.startswith('..')), file)}:{line}"


@lru_cache(maxsize=512)
def definitions(file: str) -> dict[str, int]:
    """The line of each name that a file defines at its top, in a class, or in a function."""
    try:
        with open(file, encoding="utf-8") as source:
            tree = ast.parse(source.read())
    except (OSError, SyntaxError, ValueError):
        return {}
    lines: dict[str, int] = {}
    _define(tree, "", lines)
    return lines


def _define(node: Any, prefix: str, lines: dict[str, int]) -> None:
    for each in ast.iter_child_nodes(node):
        if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            lines.setdefault(prefix + each.name, each.lineno)
            _define(each, f"{prefix}{each.name}.", lines)
        elif isinstance(each, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            targets = each.targets if isinstance(each, ast.Assign) else [each.target]
            for target in targets:
                _assigned(target, prefix, each.lineno, lines)
        elif not isinstance(each, ast.expr):
            _define(each, prefix, lines)


def _assigned(target: Any, prefix: str, line: int, lines: dict[str, int]) -> None:
    if isinstance(target, ast.Name):
        lines.setdefault(prefix + target.id, line)
    elif isinstance(target, (ast.Tuple, ast.List)):
        for each in target.elts:
            _assigned(each, prefix, line, lines)
    elif (
        isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self"
    ):
        # self.carts = {} in __init__ is the class's `carts`
        lines.setdefault(prefix.rpartition(".")[0].rpartition(".")[0] + f".{target.attr}", line)
