"""The door of `lbkit serve`: one balancer, or one for each pool that a route leads to."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from lbkit.asgi.balancer import Balancer
from lbkit.asgi.replica import Runnable
from lbkit.asgi.routed import RoutedBalancer
from lbkit.balancer import Dispatch
from lbkit.balancer.arrangement import PLAIN, arranged, rules_of
from lbkit.balancer.members import made
from lbkit.balancer.profile import profile_named
from lbkit.balancer.routes import Routes
from lbkit.cli.words import pairs, whole
from lbkit.errors import ConfigError
from lbkit.sticky import Sticky

__all__ = ["Door"]

ONLY = "web"
"""The pool where there are no routes: its replicas are web1, web2, ..."""

COOKIE = "route"
SIGNED = "lbkit_route"


@dataclass(frozen=True, kw_only=True)
class Door:
    """What was asked for on the command line. Nonsense is refused here, before the app is imported."""

    replicas: int = 3
    profile: str = PLAIN
    policy: str = ""
    weights: tuple[str, ...] = ()
    check: str = ""
    sticky: bool = False
    routes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigError(f"need --replicas >= 1, got {self.replicas}")
        profile_named(self.profile)
        self._refuse_sticky()
        for names in self.pools.values():
            arranged(
                dict.fromkeys(names, ""),
                profile=self.profile,
                policy=self.policy or None,
                weights=self._weights(names),
                backups=(),
                max_conns=0,
                max_fails=None,
                fail_timeout=None,
                retry="",
                slow_start=0.0,
                sticky=self._cookie,
                rng=None,
                allow_linear=False,
            )
        rules_of(self.check or None, profile=self.profile)

    @cached_property
    def pools(self) -> Mapping[str, Sequence[str]]:
        """The names of the replicas, by pool; in the order of the routes."""
        pools = dict.fromkeys(route.pool for route in Routes(self.routes).routes) if self.routes else [ONLY]
        return {pool: [f"{pool}{number}" for number in range(1, self.replicas + 1)] for pool in pools}

    @property
    def weights_by_name(self) -> Mapping[str, int]:
        names = [name for names in self.pools.values() for name in names]
        return {name: whole(text) for name, text in pairs(self.weights, "--weight", names).items()}

    @property
    def facts(self) -> Mapping[str, str]:
        """What the table at the start says below the replicas."""
        default = profile_named(self.profile).policies[0]
        profile = {} if self.profile == PLAIN else {"profile": self.profile}
        cookie = SIGNED if self.profile == PLAIN else COOKIE
        return {
            **profile,
            "policy": (self.policy or default).replace("_", " ") if not profile else self.policy or default,
            **({"check": self.check} if self.check else {}),
            **({"sticky": f"cookie {cookie}"} if self.sticky else {}),
        }

    def open(
        self, make: Callable[[], Runnable], *, on_dispatch: Callable[[Dispatch], object]
    ) -> Balancer | RoutedBalancer:
        """Make the replicas and put the balancers before them. Raises StartupError for one that fails."""
        balancers = {
            pool: self._balancer({name: made(make, name) for name in names}, on_dispatch)
            for pool, names in self.pools.items()
        }
        return RoutedBalancer(balancers, routes=self.routes) if self.routes else balancers[ONLY]

    def _balancer(self, apps: Mapping[str, Runnable], on_dispatch: Callable[[Dispatch], object]) -> Balancer:
        signed = Sticky(secret_keys=[secrets.token_hex(32)], cookie=SIGNED, secure=False)
        return Balancer(
            apps,
            profile=self.profile,
            policy=self.policy or None,
            weights=self._weights(apps),
            check=self.check or None,
            sticky=signed if self.sticky and self.profile == PLAIN else self._cookie,
            on_dispatch=on_dispatch,
        )

    def _weights(self, names: Sequence[str] | Mapping[str, Runnable]) -> dict[str, int]:
        return {name: weight for name, weight in self.weights_by_name.items() if name in names}

    @property
    def _cookie(self) -> str | None:
        return COOKIE if self.sticky and self.profile != PLAIN else None

    def _refuse_sticky(self) -> None:
        """Our own signed cookie goes with turns alone."""
        if not (self.sticky and self.profile == PLAIN):
            return
        beside = "--weight" if self.weights else "--policy" if self.policy not in ("", "round_robin") else ""
        if beside:
            raise ConfigError(f"need a --profile, such as nginx, for --sticky beside {beside}")
