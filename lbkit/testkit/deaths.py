"""Replicas of a run that are killed. They are made anew when they are asked again.

==========  =============================================  ==================================
isolation   what is killed                                 and what cannot be
==========  =============================================  ==================================
`module`    its modules and apps are dropped               web1, which the test itself holds;
                                                           threads that it has started
`clone`     its process; a spare one is forked for it      web1, which is the test process
`process`   its process; it is started again
==========  =============================================  ==================================
"""

from __future__ import annotations

import gc
from collections import defaultdict
from typing import TYPE_CHECKING, Any

from lbkit.errors import ReplicaReset
from lbkit.testkit.abandoned import Abandoned
from lbkit.testkit.backend import Ongoing
from lbkit.testkit.spaces import Space, quiet

if TYPE_CHECKING:
    from lbkit.testkit.kit import Kit

__all__ = ["Deaths"]

MOST = 1000
"""Dead modules and apps that are kept."""


class Deaths:
    def __init__(self, kit: Kit) -> None:
        self._kit = kit
        self.count: defaultdict[int, int] = defaultdict(int)
        """How often each replica was killed."""

        self.inside: defaultdict[int, set[Ongoing]] = defaultdict(set)
        """Requests that a replica's death would cut, while something may go wrong."""

        self.abandoned = Abandoned()
        self._dead: list[Any] = []
        """Kept: what is collected warns of what it has left open, and a process that is killed does not."""

    def kill(self, index: int) -> None:
        """A replica is gone with its memory."""
        self.count[index] += 1
        for call in list(self.inside[index]):
            call.kill(ReplicaReset(f"replica {self._kit.spaces[index].name} was killed"))
        self._dead += [fleet.kill(index) for fleet in self._kit.fleets]
        if index:
            self.bury(self._kit.spaces[index])

    def bury(self, space: Space) -> None:
        """Drop a replica's own modules: the next import begins its next life."""
        self._kit.mirror.forget(space)
        self._dead += space.clear()
        if len(self._dead) > MOST:
            with quiet():
                self._dead.clear()
                gc.collect()
        for watcher in self._kit.watchers:
            watcher.died(space)
