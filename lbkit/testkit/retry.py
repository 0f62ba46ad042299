"""Whether another replica gets a request that one has failed, in a cluster without a profile.

==========================================  ========================
the replica                                 and another one is asked
==========================================  ========================
took no connection                          always
failed after the request was sent to it     for methods that may be repeated
has begun its answer                        never
==========================================  ========================

Each request is given to no more replicas than there are, and a replica that took no connection gets none
for `OUT` seconds. A profile has rules of its own, but no signed cookie and no policy that is an object, which
a cluster may have. It decides; the doors in `lbkit.testkit.asgi` and `lbkit.testkit.wsgi` ask again.
"""

from __future__ import annotations

from lbkit.balancer.retry import IDEMPOTENT
from lbkit.testkit.row import Row

__all__ = ["OUT", "Again", "may_retry"]

OUT = 1.0
"""Seconds without requests for a replica that refused one; a replica that is started gets some at once."""


class Again(BaseException):
    """Ask another replica. No Exception, so that it passes through the balancer, which would answer 502."""


def may_retry(row: Row, *, replicas: int, repeatable: bool) -> bool:
    """Whether another replica may be asked. `repeatable`: the request's body can be sent once more."""
    if row.status is not None or len(row.attempts) >= replicas:
        return False
    if row.attempts[-1].fault == "refused":
        return repeatable
    return repeatable and row.method in IDEMPOTENT
