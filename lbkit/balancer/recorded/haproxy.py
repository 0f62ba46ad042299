"""The backend that a recording of HAProxy describes, read from its configuration."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from random import Random

from lbkit.balancer.exchange import Standing
from lbkit.balancer.haproxy import (
    Agent,
    Cookie,
    Haproxy,
    Health,
    HealthRules,
    Retries,
    Server,
    slow_start,
)
from lbkit.balancer.haproxy.cookie import dynamic_value
from lbkit.balancer.haproxy.node import SCALE
from lbkit.balancer.recorded.nginx import seconds
from lbkit.balancer.replay import Differs, NotModelled, Recording, Start, same_shares
from lbkit.balancer.replica import Mode

__all__ = ["SPECIAL", "backend", "starts"]

UNKNOWN = {"minconn", "track", "pool-max-conn", "ws", "shard"}
FLAGS = ("indirect", "nocache", "postonly", "preserve", "httponly", "secure")


def starts(recording: Recording) -> Iterator[Start]:
    model = backend(recording.config)
    yield Start(
        model=model,
        read_timeout=seconds(dict(_lines(recording.config)).get("timeout server", "2s")),
        client=lambda request: request.header("x-src") or request.client,
        admin=lambda command: _command(model, command),
        woken=model.woken,
        refused_count=False,
    )


def _lines(config: str) -> Iterator[tuple[str, str]]:
    """Each line's keyword (two words of it after timeout and option) and the rest."""
    for line in config.splitlines():
        words = line.split()
        size = 2 if words[:1] in (["timeout"], ["option"]) else 1
        yield " ".join(words[:size]), " ".join(words[size:])


def backend(config: str, *, rng: Random | None = None) -> Haproxy:
    section = config[config.index("\nbackend ") :]
    lines, defaults = dict(_lines(section)), dict(_lines(config))
    servers = [rest for word, rest in _lines(section) if word == "server"]
    model = Haproxy(
        [_server(rest, number) for number, rest in enumerate(servers, 1)],
        balance=lines["balance"],
        hash_type=lines.get("hash-type", "map-based"),
        balance_factor=int(lines.get("hash-balance-factor", 0)),
        all_backups="option allbackups" in lines,
        retries=_retries(config),
        cookie=_cookie(lines["cookie"], persist="option persist" in lines) if "cookie" in lines else None,
        stick_on=_stick(lines.get("stick", "")),
        queue_timeout=seconds(defaults.get("timeout queue", defaults.get("timeout connect", "5s"))),
        rng=rng,
    )
    if "dynamic" in lines.get("cookie", "").split():
        for node in model.nodes:
            node.cookie = dynamic_value(node.server.address, lines["dynamic-cookie-key"])
    return model


def _server(rest: str, number: int) -> Server:
    name, address, *words = rest.split()
    if unknown := set(words) & UNKNOWN:
        raise NotModelled(f"the server option {min(unknown)!r}")
    return Server(
        name=name,
        address=address,
        id=int(_after(words, "id", number)),
        weight=int(_after(words, "weight", 1)),
        cookie=str(_after(words, "cookie", "")),
        backup="backup" in words,
        disabled="disabled" in words,
        maxconn=int(_after(words, "maxconn", 0)),
        maxqueue=int(_after(words, "maxqueue", 0)),
        slowstart=seconds(str(_after(words, "slowstart", "0"))),
    )


def _after(words: list[str], name: str, default: int | str) -> int | str:
    return words[words.index(name) + 1] if name in words else default


def _retries(config: str) -> Retries:
    count, redispatch, causes = 3, 0, ["conn-failure"]
    for line in config.splitlines():
        words = line.split()
        if words[:1] == ["retries"]:
            count = int(words[1])
        elif words[:2] == ["option", "redispatch"]:
            redispatch = int(words[2]) if len(words) > 2 else -1
        elif words[:3] == ["no", "option", "redispatch"]:
            redispatch = 0
        elif words[:1] == ["retry-on"]:
            causes = words[1:]
    return Retries(count=count, redispatch=redispatch, on=frozenset(causes))


def _cookie(rest: str, *, persist: bool) -> Cookie:
    name, *words = shlex.split(rest)
    mode = next((word for word in words if word in ("insert", "rewrite", "prefix")), "")
    flags = {flag: flag in words for flag in FLAGS}
    return Cookie(
        name=name,
        mode=mode,
        maxidle=int(seconds(str(_after(words, "maxidle", "0")))),
        maxlife=int(seconds(str(_after(words, "maxlife", "0")))),
        domains=tuple(words[at + 1] for at, word in enumerate(words) if word == "domain"),
        attributes=tuple(words[at + 1] for at, word in enumerate(words) if word == "attr"),
        persist=persist,
        **flags,
    )


def _stick(rest: str) -> str:
    if not rest:
        return ""
    found = re.fullmatch(r"on ((?:req\.)?(?:hdr|cook|fhdr)\(\S+\)|src|path|(?:url_param|urlp)\(\S+\))", rest)
    if not found:
        raise NotModelled(f"stick {rest}")
    return found[1]


def _command(model: Haproxy, command: str) -> None:
    words = command.replace("/", " ").split()
    if words[:2] == ["set", "server"] and words[4] == "state":
        model.tell(words[3], Standing(mode=Mode(words[5])))
    elif words[:2] == ["set", "weight"]:
        model.set_weight(words[3], _weight(model.node(words[3]).server.weight, words[4]))
    else:
        raise NotModelled(f"the command {command!r}")


def _weight(initial: int, text: str) -> int:
    return initial * int(text[:-1]) // 100 if text.endswith("%") else int(text)


# -- recordings that are no script of requests


def _rules(config: str) -> HealthRules:
    words = next(rest for word, rest in _lines(config) if word == "server" and "check" in rest).split()
    numbers = {
        name.replace("-", "_"): int(_after(words, name, 0)) for name in ("rise", "fall", "error-limit")
    }
    times = {name: seconds(str(_after(words, name, "0"))) for name in ("inter", "fastinter", "downinter")}
    given = {name: value for name, value in {**numbers, **times}.items() if value}
    observe = str(_after(words, "observe", ""))
    return HealthRules(observe=observe, on_error=str(_after(words, "on-error", "fail-check")), **given)  # type: ignore[arg-type]


def _health(recording: Recording) -> None:
    health = Health(_rules(recording.config))
    for step, (op, real) in enumerate(zip(recording.requests, recording.states, strict=True)):
        health.check(passed=op["outcome"])
        _same(step, real, {"op_state": 2 if health.up else 0, "health": health.health})
        after = real["next_check_after_ms"]
        if after is not None and abs(after / 1000 - health.next_after) > 0.2 * health.next_after:
            raise Differs(step, after, health.next_after * 1000, "ms until the next check")


def _observe(recording: Recording) -> None:
    health = Health(_rules(recording.config))
    health.check(passed=True)  # the recording begins after a first check that passed
    for step, (op, real) in enumerate(zip(recording.requests, recording.states, strict=True)):
        picked = op["server"] if health.up else None
        if picked != recording.picked[step]:
            raise Differs(step, recording.picked[step], picked)
        if health.up:
            # To layer 4 a status is no error: only a connection that fails is one.
            layer4 = health.observed.observe == "layer4"
            health.observe(200 if layer4 and op["status"] else op["status"])
        _same(step, real, {"op_state": 2 if health.up else 0, "health": health.health})


def _agent(recording: Recording) -> None:
    agent = Agent(weight=recording.settings["initial_weight"])
    for step, (op, real) in enumerate(zip(recording.requests, recording.states, strict=True)):
        agent.reply(op["reply"])
        admin = {Mode.READY: 0, Mode.MAINT: 1, Mode.DRAIN: 8}[agent.mode]
        running = agent.up and agent.mode is not Mode.MAINT
        slim = str(agent.maxconn) if agent.maxconn else ""
        ours = {"weight": agent.weight, "slim": slim, "op_state": 2 if running else 0, "admin_state": admin}
        _same(step, real, {**ours, "picked": "b1" if agent.usable else None})


def _slow(recording: Recording) -> None:
    duration, weight = recording.settings["slowstart_s"], recording.servers[0]["weight"]
    for step, real in enumerate(recording.samples):
        pace = max(1.0, duration / 20)
        sixteenths = slow_start(real["t"] // pace * pace, duration)
        shown = (weight * sixteenths + SCALE - 1) // SCALE
        throttle = "" if sixteenths == SCALE else str(100 * sixteenths // SCALE)
        state = 2 if sixteenths == SCALE else 1
        _same(step, real, {"op_state": state, "weight": shown, "throttle": throttle})


def _same(step: int, real: dict[str, object], ours: dict[str, object]) -> None:
    for key, value in ours.items():
        if real[key] != value:
            raise Differs(step, real[key], value, key)


def _shares(recording: Recording) -> None:
    model = backend(recording.config, rng=Random(1))
    same_shares(recording, model, (server["name"] for server in recording.servers))


SPECIAL: dict[str, Callable[[Recording], None]] = {
    "ha_dist": _shares,
    "ha_health": _health,
    "ha_observe": _observe,
    "ha_agent": _agent,
    "ha_slowstart": _slow,
}
