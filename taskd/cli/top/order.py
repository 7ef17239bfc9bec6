"""What ``taskd top`` shows of all rows, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

from taskd.client.sampling import Row

__all__ = ["Order", "chosen"]


class Order(Enum):
    """What comes first."""

    CPU = "cpu"
    MEMORY = "memory"
    PIDS = "pids"
    IO = "io"
    AGE = "age"
    NAME = "name"

    @property
    def next(self) -> Order:
        orders = list(Order)
        return orders[(orders.index(self) + 1) % len(orders)]


def chosen(rows: Sequence[Row], order: Order, words: str = "") -> list[Row]:
    """Those that have all `words` in what is said of them, in this order; unknown ones last."""
    wanted = words.lower().split()

    def has(row: Row) -> bool:
        about = f"{row.id} {row.container.image} {row.command} {row.status}".lower()
        return all(word in about for word in wanted)

    def key(row: Row) -> tuple[float, str]:
        if order is Order.NAME:
            return 0.0, row.id
        value = getattr(row, order.value)
        return (-1.0 if value is None else float(value)), row.id

    return sorted(filter(has, rows), key=key, reverse=order is not Order.NAME)
