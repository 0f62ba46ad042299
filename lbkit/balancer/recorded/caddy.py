"""The reverse proxy that a recording of Caddy describes, read from its Caddyfile."""

from __future__ import annotations

from collections.abc import Iterator

from lbkit.balancer.caddy import Caddy, Passive, Retrying, Upstream
from lbkit.balancer.recorded.nginx import seconds
from lbkit.balancer.replay import Guided, NotModelled, Recording, Start

__all__ = ["starts"]

KNOWN = {
    "lb_policy",
    "lb_try_duration",
    "lb_try_interval",
    "lb_retries",
    "fail_duration",
    "max_fails",
    "unhealthy_status",
    "unhealthy_latency",
    "unhealthy_request_count",
    "header_down",
}


def starts(recording: Recording) -> Iterator[Start]:
    if not recording.version.startswith("2.6."):
        raise NotModelled(f"Caddy {recording.version}: its hash function and its keys are others since 2.7")
    dials, options = _proxy(recording.config)
    names = {server["address"]: server["name"] for server in recording.servers}
    guide = Guided()
    model = Caddy(
        [Upstream(names[dial], dial) for dial in dials],
        policy=options.get("lb_policy", "random"),
        passive=_passive(options),
        retrying=Retrying(
            duration=seconds(options.get("lb_try_duration", "0")),
            interval=seconds(options.get("lb_try_interval", "250ms")),
            retries=int(options.get("lb_retries", 0)),
        ),
        chance=guide,
    )
    yield Start(model=model, guide=guide, refused_count=False)


def _proxy(config: str) -> tuple[list[str], dict[str, str]]:
    """The upstreams of the `reverse_proxy` block, and its directives."""
    head, _, rest = config.partition("reverse_proxy ")[2].partition("\n")
    block = rest.partition("\n    }")[0]
    lines = (line.split(None, 1) for line in block.splitlines() if line.strip())
    options = {words[0]: words[1] if len(words) > 1 else "" for words in lines}
    if unknown := sorted(set(options) - KNOWN):
        raise NotModelled(f"the directive {unknown[0]!r}")
    return head.rstrip("{ ").split(), options


def _passive(options: dict[str, str]) -> Passive:
    given = {"max_fails", "unhealthy_status", "unhealthy_latency", "unhealthy_request_count"} & set(options)
    return Passive(
        fail_duration=seconds(options.get("fail_duration", "0")),
        max_fails=int(options.get("max_fails", 1 if "fail_duration" in options or not given else 0)),
        unhealthy_status=frozenset(_statuses(options.get("unhealthy_status", "").split())),
        unhealthy_latency=seconds(options.get("unhealthy_latency", "0")),
        unhealthy_request_count=int(options.get("unhealthy_request_count", 0)),
    )


def _statuses(words: list[str]) -> Iterator[int]:
    """`503`, or `5xx` for all of them."""
    for word in words:
        if word.endswith("xx"):
            yield from range(int(word[0]) * 100, int(word[0]) * 100 + 100)
        else:
            yield int(word)
