"""What a store says to Redis, and what the answers mean: one text for each way of carrying it.

=====================  =========  ==============================================================
key                    type       holds
=====================  =========  ==============================================================
`{prefix}s:{key}`      hash       a session, a field for each of its keys; it expires as a whole
`{prefix}u:{user}`     zset       the sessions of a user, by the time at which they end
`{prefix}l:{key}`      string     the lock of a session: who holds it
=====================  =========  ==============================================================

Where a key or a user has a slot, that stands in braces behind the prefix: `{prefix}{{slot}}s:{key}`. So all
of a slot lies on one server of a cluster, and one script may change a session and an index. A prefix with
braces of its own puts everything into one slot already, which is just as well.

A method is a flow: it yields a `Call`, is sent the reply, and returns what the store's method returns. Each
command names keys of one slot alone, so a cluster can do it all.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Generator, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

from lbkit.errors import ConfigError, StoreUnavailable
from lbkit.sessions.store import Committed, Delta, Entry, Fields, Listing, Result, refuse_nonsense

__all__ = [
    "Broken",
    "Call",
    "Command",
    "Dialogue",
    "Flow",
    "NoScript",
    "WrongType",
    "arun",
    "refused",
    "run",
    "scanned",
]

log = logging.getLogger("lbkit.sessions")

T = TypeVar("T")

Command: TypeAlias = "tuple[str | bytes | int, ...]"

# Braces are welcome: they put all sessions of a small cluster into one slot. Empty ones in front would keep
# a cluster from looking at any that follow.
PREFIX = re.compile(r"(?![^{]*\{\})[A-Za-z0-9_.:/{}-]{0,64}", re.ASCII)


class Call(NamedTuple):
    """Commands to be sent at once. The answer to one is its reply, to several a list of theirs.

    Of several, one that met a WrongType has that in its place; any other error is raised.
    """

    commands: Sequence[Command]
    repeatable: bool = False
    """May it be sent again when the connection broke, although the server may have done it already?"""


Flow: TypeAlias = Generator[Call, Any, T]


class NoScript(Exception):
    """Thrown into a flow: the server does not know this script yet, or will not run it by its name."""


class Broken(StoreUnavailable):
    """Thrown into a flow: the connection broke, or could not be made. Unlike a timeout, it cost no time."""


class WrongType(Exception):
    """Thrown into a flow: what is under the key is no session, and never was."""


def refused(text: str, name: str) -> Exception:
    """What to throw into a flow for the error that a server answers with."""
    if (
        text.startswith("NOSCRIPT") or "evalsha" in text.lower()
    ):  # the latter from hosts that refuse the command
        return NoScript(text)
    return WrongType(text) if "WRONGTYPE" in text else StoreUnavailable(f"{name}: {text}")


def run(flow: Flow[T], ask: Callable[[Call], Any]) -> T:
    """Hold the dialogue: what `ask` returns is the reply, and what it raises is thrown into the flow."""
    try:
        call = next(flow)
        while True:
            try:
                reply = ask(call)
            except Exception as error:
                call = flow.throw(error)
            else:
                call = flow.send(reply)
    except StopIteration as done:
        return cast(T, done.value)


async def arun(flow: Flow[T], ask: Callable[[Call], Awaitable[Any]]) -> T:
    """The same, awaited."""
    try:
        call = next(flow)
        while True:
            try:
                reply = await ask(call)
            except Exception as error:
                call = flow.throw(error)
            else:
                call = flow.send(reply)
    except StopIteration as done:
        return cast(T, done.value)


def _sent(call: Call) -> Flow[Any]:
    """The reply, if need be over a second connection: one that lay idle may have lost its server."""
    try:
        return (yield call)
    except Broken:
        if not call.repeatable:
            raise
        return (yield call)


def scanned(pattern: str, limit: int) -> Flow[list[bytes]]:
    """The names of keys on one server, `limit` at most. A cluster has several, and redis-py's `scan_iter`."""
    names: dict[bytes, None] = {}  # SCAN may name a key twice
    cursor: bytes | int = 0
    while len(names) < limit:
        call = Call((("SCAN", cursor, "MATCH", pattern, "COUNT", 1000),), repeatable=True)
        cursor, some = yield from _sent(call)
        names |= dict.fromkeys(some)
        if cursor == b"0":
            break
    return list(names)[:limit]


class Script(NamedTuple):
    text: bytes
    sha: str

    @classmethod
    def named(cls, *names: str) -> Script:
        text = b"".join(files(__package__).joinpath(f"{name}.lua").read_bytes() for name in names)
        return cls(text, hashlib.sha1(text, usedforsecurity=False).hexdigest())

    def call(self, keys: Sequence[str], *arguments: str | bytes | int, repeatable: bool = False) -> Flow[Any]:
        """By its name; a server that was started anew, or has taken over, is told the text."""
        named = len(keys), *keys, *arguments
        try:
            try:
                return (yield from _sent(Call((("EVALSHA", self.sha, *named),), repeatable)))
            except NoScript:
                return (yield from _sent(Call((("EVAL", self.text, *named),), repeatable)))
        except WrongType as error:  # what is under a session's key is looked at before
            raise StoreUnavailable(str(error)) from error


COMMIT = Script.named("entries", "commit")
INDEX = Script.named("entries", "index")
UNLOCK = Script.named("unlock")


class Dialogue:
    """`prefix` stands before each key, so that several apps can share a server."""

    def __init__(self, *, prefix: str = "lbkit:") -> None:
        if not PREFIX.fullmatch(prefix):
            rule = "a prefix of up to 64 letters, digits and _.:/{}-, the first braces not empty"
            raise ConfigError(f"need {rule}, got {prefix!r}")
        self.prefix = prefix
        self._asked_for_policy = False

    def load(self, key: str) -> Flow[Fields | None]:
        try:
            reply = yield from _sent(Call((("HGETALL", self._name("s", key)),), repeatable=True))
        except WrongType:
            return None
        return _mapping(reply) or None

    def commit(self, key: str, delta: Delta) -> Flow[Committed]:
        refuse_nonsense(key, delta)
        keys, arguments = [self._name("s", key)], _arguments(delta)
        if delta.listing is not None:
            keys.append(self._name("u", delta.listing.user))
            arguments += _listed(key, delta.listing)
        reply = yield from COMMIT.call(keys, *arguments, repeatable=_same_if_repeated(delta))
        if delta.create:
            yield from self._warn_of_eviction()
        return _committed(delta, reply)

    def delete(self, *keys: str) -> Flow[int]:
        if not keys:
            return 0
        call = Call([("UNLINK", self._name("s", key)) for key in keys], repeatable=True)
        replies = yield from _sent(call)
        return int(replies) if len(keys) == 1 else sum(map(int, replies))

    def look(self, keys: Sequence[str], fields: Sequence[bytes]) -> Flow[list[Fields | None]]:
        # A session without any of the fields must not look like none.
        asked = [command for key in keys for command in self._look(key, fields)]
        if not asked:
            return []
        replies = yield from _sent(Call(asked, repeatable=True))
        pairs = zip(replies[::2], replies[1::2], strict=True)
        return [
            _some(fields, values) if int(there) and type(values) is list else None for there, values in pairs
        ]

    def _look(self, key: str, fields: Sequence[bytes]) -> Iterable[Command]:
        yield "EXISTS", self._name("s", key)
        yield "HMGET", self._name("s", key), *(fields or (b"\0",))

    def index(
        self, user: str, *, now: float, add: Entry | None = None, remove: Collection[str] = ()
    ) -> Flow[None]:
        added = (add.key, _milliseconds(add.expires_at)) if add else ("", "")
        call = INDEX.call([self._name("u", user)], _milliseconds(now), *added, *remove, repeatable=True)
        yield from call

    def sessions_of(self, *users: str, now: float) -> Flow[list[Entry]]:
        after = f"({_milliseconds(now)}"
        asked = [("ZRANGEBYSCORE", self._name("u", user), after, "+inf", "WITHSCORES") for user in users]
        if not asked:
            return []
        try:
            replies = yield from _sent(Call(asked, repeatable=True))
            found = [each for reply in (replies if len(asked) > 1 else [replies]) for each in _entries(reply)]
        except WrongType as error:  # to find nobody would be worse: they are asked for to be logged out
            raise StoreUnavailable(str(error)) from error
        return sorted(found, key=lambda entry: (entry.expires_at, entry.key))

    def lock(self, key: str, token: str, *, ttl: float) -> Flow[bool]:
        reply = yield Call((("SET", self._name("l", key), token, "NX", "PX", _milliseconds(ttl)),))
        return bool(reply)

    def unlock(self, key: str, token: str) -> Flow[bool]:
        return bool((yield from UNLOCK.call([self._name("l", key)], token)))

    def ping(self) -> Flow[None]:
        yield from _sent(Call((("PING",),), repeatable=True))
        yield from self._warn_of_eviction()

    def _warn_of_eviction(self) -> Flow[None]:
        if self._asked_for_policy:
            return
        self._asked_for_policy = True
        try:
            policy = _evicts((yield Call((("INFO", "memory"),))))
        except (StoreUnavailable, ValueError, TypeError):  # not allowed, or another kind of server
            return
        if policy is not None:
            log.warning(
                "maxmemory-policy is %s: when Redis is full, it ends sessions in use; need noeviction",
                policy,
            )

    @property
    def sessions(self) -> tuple[str, str]:
        """The patterns of all sessions' keys, for SCAN: of those without a slot, and of those with one."""
        return f"{self.prefix}s:*", f"{self.prefix}{{*}}s:*"

    def key_of(self, name: bytes | str) -> str:
        """The session's key, of the name that it has in Redis. A client of the app's may have decoded it."""
        text = name if isinstance(name, str) else name.decode()
        slot, _, key = text.removeprefix(self.prefix).partition("s:")
        return f"{slot[1:-1]}.{key}" if slot else key

    def _name(self, kind: str, name: str) -> str:
        if "." not in name:
            return f"{self.prefix}{kind}:{name}"
        slot, _, rest = name.rpartition(".")
        return f"{self.prefix}{{{slot}}}{kind}:{rest}"


def _arguments(delta: Delta) -> list[str | bytes | int]:
    arguments: list[str | bytes | int] = [
        "new" if delta.create else "old",
        "whole" if delta.whole else "part",
        "drop" if delta.drop else "keep",
        "" if delta.ttl is None else _milliseconds(delta.ttl),
    ]
    arguments.append(2 * len(delta.expect))
    for field, value in delta.expect.items():
        arguments += field, _digest(value)
    arguments += len(delta.dels), *delta.dels
    for pairs in (delta.sets, delta.incrs):
        arguments.append(2 * len(pairs))
        for pair in pairs.items():
            arguments += pair
    return arguments


def _listed(key: str, listing: Listing) -> list[str | bytes | int]:
    ends = "" if listing.expires_at is None else _milliseconds(listing.expires_at)
    return [_milliseconds(listing.now), key, ends]


def _same_if_repeated(delta: Delta) -> bool:
    """Would a second time change nothing, and answer the same?"""
    return not (delta.create or delta.incrs or delta.expect or delta.whole or delta.drop)


def _committed(delta: Delta, reply: Sequence[Any]) -> Committed:
    name, *more = reply
    result = Result[bytes(name).decode()]
    if result is Result.OK:
        return Committed(result, dict(zip(delta.incrs, map(int, more), strict=True)))
    if result is Result.MOVED:
        return Committed(result, moved_to=more[0].decode())
    return Committed(result, field=more[0] if more else None)


def _entries(reply: Any) -> list[Entry]:
    """Protocol 3 answers with pairs, protocol 2 with one flat list."""
    if isinstance(reply, WrongType):
        raise reply
    pairs = reply if reply and not isinstance(reply[0], bytes) else zip(reply[::2], reply[1::2], strict=True)
    return [Entry(bytes(name).decode(), float(score) / 1000) for name, score in pairs]


def _digest(value: bytes | None) -> str:
    return "" if value is None else hashlib.sha1(value, usedforsecurity=False).hexdigest()


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _mapping(reply: Any) -> Mapping[bytes, bytes]:
    """Protocol 3 answers with a map, protocol 2 with a flat list."""
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2], strict=True))


def _some(fields: Sequence[bytes], values: Sequence[bytes | None]) -> Fields:
    return {field: value for field, value in zip(fields, values, strict=False) if value is not None}


def _evicts(reply: Any) -> str | None:
    """The policy by which a server ends sessions that are in use, None for one that does not."""
    if not isinstance(reply, dict):
        lines = (line.partition(":") for line in bytes(reply).decode("utf-8", "replace").splitlines())
        reply = {name: value for name, _, value in lines}
    policy = str(reply.get("maxmemory_policy", "noeviction"))
    return policy if int(reply.get("maxmemory", 0)) > 0 and policy != "noeviction" else None
