"""The cart: what one visitor wants to buy, as a value that fits into a cookie.

It decides and stores nothing. The app reads it from the session at the start of a
request and writes it back at the end, so the next request may go to any replica.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .catalogue import Catalogue, Product

__all__ = ["MAX_QUANTITY", "Cart", "CartError", "Line"]

MAX_QUANTITY = 20


class CartError(ValueError):
    """A quantity that the shop does not sell."""


@dataclass(frozen=True)
class Line:
    product: Product
    quantity: int

    @property
    def cents(self) -> int:
        return self.product.cents * self.quantity


class Cart:
    """`stored` is {sku: quantity}, from the session cookie."""

    def __init__(self, stored: dict[str, int], catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        # A cookie outlives a catalogue: what is no longer sold drops out.
        self.quantities = {sku: quantity for sku, quantity in stored.items() if sku in catalogue}

    def __iter__(self) -> Iterator[Line]:
        """Lines in the order of the catalogue."""
        for product in self._catalogue:
            if product.sku in self.quantities:
                yield Line(product, self.quantities[product.sku])

    def __len__(self) -> int:
        """How many things, not how many lines."""
        return sum(self.quantities.values())

    @property
    def cents(self) -> int:
        return sum(line.cents for line in self)

    def rows(self) -> list[tuple[str, int, int]]:
        """Name, quantity, cents of each line: what an order remembers after the prices have moved on."""
        return [(line.product.name, line.quantity, line.cents) for line in self]

    def add(self, product: Product, quantity: int) -> None:
        if quantity < 1:
            raise CartError(f"need quantity >= 1 to add, got {quantity}")
        self.set(product, self.quantities.get(product.sku, 0) + quantity)

    def set(self, product: Product, quantity: int) -> None:
        """Zero takes the product out."""
        if not 0 <= quantity <= MAX_QUANTITY:
            raise CartError(f"need 0 <= quantity <= {MAX_QUANTITY} of {product.name}, got {quantity}")
        if quantity:
            self.quantities[product.sku] = quantity
        else:
            self.quantities.pop(product.sku, None)
