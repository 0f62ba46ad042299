"""What `pytest --replicas` was asked for, and what of that makes no sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lbkit.errors import ConfigError
from lbkit.testkit.clone import need_fork
from lbkit.testkit.recipes import Recipe

__all__ = ["ISOLATIONS", "POLICIES", "Settings", "told"]

POLICIES = ("round_robin", "random", "sticky", "one")
"""`one`: every request goes to one replica, the last; that is how a verdict tells copies from spreading."""

ISOLATIONS = ("auto", "module", "clone", "process", "none")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was asked for on the command line and in the configuration."""

    replicas: int = 3
    isolation: str = "auto"
    policy: str = "round_robin"
    seed: int = 0
    app: str | None = None
    private: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    watch: bool = True
    differ: bool = False
    fresh: str = "session"
    receive_timeout: float = 2.0
    chaos: Mapping[str, float] = field(default_factory=dict)
    """For each kind of fault the share of the requests that it hits."""

    calm: bool = False
    """Nothing goes wrong, whatever the markers say."""

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigError(f"need at least 1 replica, got --replicas {self.replicas}")
        if self.isolation not in ISOLATIONS:
            raise ConfigError(f"need an isolation of {', '.join(ISOLATIONS)}, got {self.isolation!r}")
        if self.isolation == "clone":
            need_fork()
        if self.app is not None:
            told(self.app)
        if self.chaos and self.isolation == "none":
            raise ConfigError("need replicas to hit, got --replica-chaos with --replica-isolation none")
        if self.policy not in POLICIES:
            raise ConfigError(f"need a policy of {', '.join(POLICIES)}, got {self.policy!r}")


def told(target: str) -> Recipe:
    """The recipe that a target such as `shop:create_app()` or `shop.web:app` names."""
    module, colon, path = target.partition(":")
    name = path.removesuffix("()")
    if not (colon and all(part.isidentifier() for part in [*module.split("."), *name.split(".")])):
        raise ConfigError(f"need module:app or module:create_app(), got --replica-app {target!r}")
    return Recipe(module, name, call=path != name)
