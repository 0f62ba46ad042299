"""One run of a suite over replicas: who serves the next request, and who watches.

It knows no framework and no pytest: `frameworks` puts its doors under test clients, `run` tells it which test
is running, and what it has found out is a `Report`.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from lbkit.errors import ConfigError, LbkitError, StartupError
from lbkit.testkit.bringing import Touched
from lbkit.testkit.clone import Nursery, need_fork
from lbkit.testkit.danger import Danger
from lbkit.testkit.deaths import Deaths
from lbkit.testkit.doors import AsgiDoor, Managed, WsgiDoor
from lbkit.testkit.faults import Fault
from lbkit.testkit.findings import Report, Row, Struck
from lbkit.testkit.first_party import FirstParty
from lbkit.testkit.fleet import AnyFleet, Clones, Fleet, Processes
from lbkit.testkit.interpreters import Interpreters
from lbkit.testkit.mirror import ABSENT, Mirror
from lbkit.testkit.patches import Patches
from lbkit.testkit.recipes import NoRecipe, Recipe, Recipes
from lbkit.testkit.row import Row as TraceRow
from lbkit.testkit.settings import Settings, told
from lbkit.testkit.spaces import SWITCH, Space, current
from lbkit.testkit.turn import Served, Turn, Watcher

if TYPE_CHECKING:
    from lbkit.testkit.oracles.difference import DifferentialGet

__all__ = ["Kit"]

MOST_ROWS = 20_000


def is_spread(app: Any) -> bool:
    """Whether this is the door of a `Cluster`, which has replicas of its own."""
    return bool(getattr(type(getattr(app, "__self__", app)), "lbkit_spreads", False))


class Kit:
    """The replicas of every app that a suite asks, for one run."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.settings = settings
        self.clock = clock
        self.began_at = clock()
        self.first_party = FirstParty(settings.private)
        self.spaces: list[Space] = []
        self.forked: list[Space] = []
        self.apart: list[Space] = []
        """What stands for replicas in other processes; in `forked` the first one is the test process."""

        self.recipes = Recipes(self.first_party)
        self.mirror = Mirror(self.first_party)
        self.mirror.finders.append(self._twin_of_app)
        self.touched = Touched()
        self.patches = Patches()
        self.watchers: list[Watcher] = []
        self.turn = Turn()
        self.report = Report(replicas=settings.replicas, isolation=settings.isolation, policy=settings.policy)
        self.differ: DifferentialGet | None = None
        """Compares the replicas' answers, when that is asked for."""

        self.deaths = Deaths(self)
        self.interpreters = Interpreters(settings.replicas, private=settings.private, watch=settings.watch)
        self.nursery = Nursery(())
        self._fleets: dict[tuple[int, str], AnyFleet | None] = {}
        self._made: set[str] = set()
        self._bound: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self.grow(settings.replicas)

    @property
    def count(self) -> int:
        """How many replicas the test that runs has."""
        return self.turn.replicas or self.settings.replicas

    @property
    def fleets(self) -> list[AnyFleet]:
        """The apps that have replicas."""
        return [fleet for fleet in self._fleets.values() if fleet is not None]

    @property
    def isolation(self) -> str:
        return self.turn.isolation or self.settings.isolation

    def grow(self, replicas: int) -> None:
        """Have room for so many: a test may ask for more of them than the others do."""
        for number in range(len(self.spaces), replicas):
            name = f"web{number + 1}"
            space, apart = (Space(name, self.first_party, own=own) for own in (number == 0, True))
            self.spaces.append(space)
            self.apart.append(apart)
            self.forked.append(apart if number else space)
            if number:
                self.mirror.add(space)
                self.nursery.names.append(name)
        self.interpreters.count = len(self.spaces)
        self._fleets.clear()

    def close(self) -> None:
        """Take everything out again."""
        self.nursery.close(force=True)
        self.interpreters.close()
        self.patches.remove()
        self.mirror.remove()
        SWITCH.remove()

    def begin_test(
        self,
        test: str,
        *,
        single: bool = False,
        policy: str = "",
        allow: tuple[str, ...] = (),
        replicas: int = 0,
        isolation: str = "",
        faults: Iterable[Fault] = (),
    ) -> None:
        """The round robin's start comes from the test's name: the same in each run, in any order."""
        number = zlib.crc32(test.encode()) + self.settings.seed
        self.turn = Turn(
            test=test,
            next=number % (replicas or self.settings.replicas),
            single=single,
            policy=policy or self.settings.policy,
            replicas=replicas,
            isolation=isolation,
            allow=allow,
            chance=random.Random(number),  # noqa: S311 - it picks replicas, not secrets
        )
        self._endanger(faults)
        if self.settings.fresh == "test":
            self._renew()
        self.mirror.watch()

    def _endanger(self, faults: Iterable[Fault]) -> None:
        """Chaos is not for a test that is asked of one replica only; faults that it asks for are."""
        settings, turn = self.settings, self.turn
        rates = {} if turn.single else settings.chaos
        if settings.calm or not (rates or faults):
            return
        turn.danger = Danger(
            turn.test,
            replicas=1 if turn.single else self.count,
            rates=rates,
            seed=settings.seed,
            faults=faults,
            now=self.clock(),
        )
        self.nursery.mortal = True
        self.report.struck = self.report.struck or Struck(rates=dict(settings.chaos), seed=settings.seed)

    def _renew(self) -> None:
        """Throw away the copies: no test finds what an earlier one has left in a replica."""
        for space in self.spaces[1:]:
            self.deaths.bury(space)
        self.interpreters.close()
        self._fleets.clear()
        self._made.clear()

    def end_test(self) -> None:
        turn, self.turn = self.turn, Turn(policy=self.settings.policy)
        self.nursery.close()
        self._listen(turn)
        for watcher in self.watchers:
            watcher.over(turn)
        self.report.tests += 1
        self.report.spread += len(turn.reached) > 1
        self.report.rows += self.rows(turn)[: max(0, MOST_ROWS - len(self.report.rows))]
        if turn.danger is not None and self.report.struck is not None:
            self.report.struck.count(turn.danger.hits, turn.trace)

    def door(self, app: Any, client: object, *, wsgi: bool) -> Any:
        """What a client calls in place of an app."""
        if current() is not None or isinstance(app, (AsgiDoor, WsgiDoor)) or is_spread(app):
            return app  # a replica that asks an app itself, or one that is dispatched already
        if isinstance(app, Managed):
            return app.of(client)
        return WsgiDoor(self, app, client) if wsgi else AsgiDoor(self, app, client)

    def fleet(self, app: Any) -> AnyFleet | None:
        """The replicas of an app; None for one that has no recipe, or that a replica asks itself."""
        if current() is not None:
            return None
        key = id(app), self.isolation
        try:
            return self._fleets[key]
        except KeyError:
            fleet = self._fleets[key] = self._new(app)
            return fleet

    def pick(self, client: object) -> int:
        """The number of the replica that serves the next request."""
        turn, count = self.turn, self.count
        if turn.single or count == 1:
            return 0
        if turn.policy == "one":
            return count - 1
        if turn.policy == "random":
            return turn.chance.randrange(count)
        if turn.policy == "sticky" and client in self._bound:
            return self._bound[client]
        index, turn.next = turn.next, (turn.next + 1) % count
        if turn.policy == "sticky":
            self._bound[client] = index
        return index

    def pick_up(self, danger: Danger, client: object, row: TraceRow) -> int:
        """The same in danger: a replica that is up and, best, has not failed this request."""
        first = self.pick(client)
        up = list(danger.up(first))
        if self.turn.policy == "sticky" and first not in up:
            self._bound[client] = up[0]
        return next(iter(self.left(row, up)), up[0])

    def left(self, row: TraceRow, up: Iterable[int]) -> list[int]:
        """Those of them that were not asked by this request."""
        names = {attempt.replica for attempt in row.attempts}
        return [index for index in up if self.spaces[index].name not in names]

    def row_of(self, client: object, method: str, path: str) -> TraceRow:
        """The row of a request that has come while something may go wrong."""
        return self.turn.trace.begin(self.clock(), client=type(client).__name__, method=method, path=path)

    def begin(self, space: Space, app: Any, own: Any, method: str, path: str) -> Served:
        served = Served(space, app, own, method, path, self.turn, self.clock())
        served.turn.reached.add(space.name)
        served.turn.cloned |= space not in self.spaces
        for watcher in self.watchers:
            watcher.before(served)
        return served

    def look(self, served: Served) -> None:
        self._listen(served.turn, served.space.name)
        for watcher in self.watchers:
            watcher.during(served)

    def end(self, served: Served, row: TraceRow | None = None) -> None:
        """The app's call is over. `row`: of the trace, which tells more of the request than we know here."""
        if row is None:
            now = self.clock()
            served.turn.rows.append(
                Row(
                    served.turn.test,
                    served.space.name,
                    served.method,
                    served.path,
                    served.status,
                    round(served.began_at - self.began_at, 6),
                    round(now - served.began_at, 6),
                )
            )
        self._listen(served.turn, served.space.name)
        for watcher in self.watchers:
            watcher.after(served)

    def rows(self, turn: Turn) -> list[Row]:
        """The requests of a test so far."""
        told = [Row.told(turn.test, row, now=self.clock(), origin=self.began_at) for row in turn.trace]
        return sorted([*turn.rows, *told], key=lambda row: row.at) if told else turn.rows

    def _listen(self, turn: Turn, replica: str | None = None) -> None:
        """Tell the watchers what interpreters have said: they watch themselves."""
        for name, said in self.interpreters.heard(replica):
            for watcher in self.watchers:
                watcher.heard(name, said, turn)

    def made(self, own: Any) -> None:
        """A framework's app was made in the test process."""
        self.mirror.watch()  # the module that makes it may be set upon as soon as it is imported
        for watcher in self.watchers:
            watcher.made(own)

    def making(self, own: Any, space: Space) -> None:
        for watcher in self.watchers:
            watcher.making(own, space)

    def booted(self, fleet: Fleet, space: Space, app: Any) -> None:
        for watcher in self.watchers:
            watcher.booted(fleet, space, app)

    def allows(self, name: str, turn: Turn | None = None) -> bool:
        """Whether somebody has said that this state may differ between replicas."""
        patterns = self.settings.allow + (turn.allow if turn is not None else ())
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    def _new(self, app: Any) -> AnyFleet | None:
        self.mirror.refresh()
        self.mirror.watch()
        if self.isolation == "none":
            return None
        if self.isolation == "clone":
            return self._cloned(app, "clone")
        if self.isolation != "process":
            return self._copied(app)
        try:
            return self._in_processes(app)
        except LbkitError as error:
            return self._copied(app, f"no process: {error}")

    def _copied(self, app: Any, *why: str) -> AnyFleet | None:
        """`why`: for what reasons it is not isolated as it should be."""
        try:
            recipe = self._recipe(app)
            fleet = Fleet(self, app, recipe, forget=self._forget(id(app)))
            return self._checked(fleet, recipe, ": ".join(("module", *why)))
        except (NoRecipe, StartupError) as error:
            if self.isolation != "module":
                return self._cloned(app, "; ".join((f"clone: {error}", *why)))
            self.report.apps.setdefault(type(app).__name__, f"none: {error}")
            return None

    def _in_processes(self, app: Any) -> Processes:
        """Raises LbkitError with the reason why not."""
        target, began_at = self._target(app), self.clock()
        processes = Processes(self, app, target, forget=self._forget(id(app)))
        self._listen(self.turn)
        self.report.apps[target] = "process"
        self.report.boot_seconds += self.clock() - began_at
        return processes

    def _target(self, app: Any) -> str:
        """What other interpreters import it by: as it was made, else as we were told."""
        try:
            return self.recipes.find(app).target()
        except NoRecipe:
            if self.settings.app is None:
                raise
            return told(self.settings.app).target()

    def _recipe(self, app: Any) -> Recipe:
        """How the app was made, else how we were told to make it."""
        try:
            return self.recipes.find(app)
        except NoRecipe:
            if self.settings.app is None:
                raise
            return told(self.settings.app)

    def _cloned(self, app: Any, why: str) -> Clones | None:
        name = type(app).__name__
        try:
            need_fork()
            clones = Clones(self, app, forget=self._forget(id(app)))
        except (ConfigError, TypeError) as error:
            self.report.apps.setdefault(name, f"none: {error}; {why}")
            return None
        self.report.apps.setdefault(name, why)
        return clones

    def _checked(self, fleet: Fleet, recipe: Recipe, how: str) -> Fleet:
        """A recipe that is new makes all of its replicas, so that we learn early what goes wrong."""
        if str(recipe) not in self._made:
            self._made.add(str(recipe))
            for index in range(self.count):
                fleet.app(index)
            self.report.apps[str(recipe)] = how
        return fleet

    def _forget(self, number: int) -> Callable[[Any], object]:
        key = number, self.isolation
        return lambda _: self._fleets.pop(key, None)

    def _twin_of_app(self, own: Any, space: Space) -> Any:
        for fleet in self.fleets:
            if (twin := fleet.twin(own, space)) is not ABSENT:
                return twin
        return ABSENT
