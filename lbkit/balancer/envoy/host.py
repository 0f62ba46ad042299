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

    draining: bool = False
    removed: bool = False
    """No host of the cluster for now: not even a panic brings requests to it."""

    active: int = 0
    share: float = 1.0
    """How much of its weight it gets."""

    whole: int = 0
    """The configured weight, of which `weight` is what it gets now."""

    def __post_init__(self) -> None:
        self.whole = self.weight

    @property
    def serving(self) -> bool:
        """Those who are bound to it are served."""
        return self.healthy and not self.ejected

    @property
    def usable(self) -> bool:
        return self.serving and not self.draining

    @property
    def skipped(self) -> str:
        """Why it gets no new client; empty when it may."""
        if self.removed:
            return "removed"
        if not self.healthy:
            return "unhealthy"
        return "ejected" if self.ejected else "draining" * self.draining
