"""The catalogue: what the shop sells. Read from a file at start, never written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Catalogue", "Product", "euros"]


@dataclass(frozen=True)
class Product:
    sku: str
    name: str
    art: str
    """Which drawing of templates/art.html shows it."""
    cents: int
    line: str
    story: str


class Catalogue:
    """Products in the order of the file, found by their sku."""

    def __init__(self, products: list[Product]) -> None:
        self._products = {product.sku: product for product in products}

    @classmethod
    def load(cls, path: Path) -> Catalogue:
        return cls([Product(**entry) for entry in json.loads(path.read_text("utf-8"))])

    def __iter__(self) -> Iterator[Product]:
        return iter(self._products.values())

    def __contains__(self, sku: object) -> bool:
        return sku in self._products

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Catalogue) and list(self) == list(other)

    def find(self, sku: str) -> Product | None:
        return self._products.get(sku)


def euros(cents: int) -> str:
    """4900 -> "€49.00". Money is whole cents until it is shown."""
    return f"€{cents // 100}.{cents % 100:02}"
