"""A host of an Envoy cluster, and what outlier detection has made of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Host"]


@dataclass(slots=True, eq=False)
class Host:
    name: str
    address: str
    """`ip:port`: the text that rings and tables hash."""

    weight: int = 1
    priority: int = 0
    healthy: bool = True
    """What health checks (or the control plane) say."""

    ejected: bool = False
    """What outlier detection says, and the balancer has heard."""

    active: int = 0

    @property
    def usable(self) -> bool:
        return self.healthy and not self.ejected
