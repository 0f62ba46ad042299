"""Draw how five balancers spread the same weights: docs/spread.svg, for the README.

    python -m benchmarks.spread [--write]

Without --write it prints the sequences.
"""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

from lbkit.balancer.exchange import Request
from lbkit.balancer.explain import decide
from lbkit.balancer.profile import PROFILES, Place

PICTURE = Path(__file__).parent.parent / "docs" / "spread.svg"
WEIGHTS = (5, 2, 1)
REQUESTS = 24
COLOURS = {"web1": "#2f6fab", "web2": "#e0912f", "web3": "#5a9e52"}
ROWS = (
    ("nginx", "round_robin", "nginx: smooth weighted"),
    ("haproxy@2.6", "roundrobin", "HAProxy: roundrobin"),
    ("haproxy@2.6", "static-rr", "HAProxy: static-rr"),
    ("envoy", "ROUND_ROBIN", "Envoy: earliest deadline"),
    ("traefik@3", "wrr", "Traefik: wrr, on a heap"),
    ("caddy@2.6", "round_robin", "Caddy 2.6: has no weights"),
)
CELL, LEFT, TOP = 24, 210, 46


def sequence(profile: str, policy: str) -> list[str]:
    weights = WEIGHTS if "weights" in PROFILES[profile].has else (1,) * len(WEIGHTS)
    places = [Place(name=f"web{number}", weight=weight) for number, weight in enumerate(weights, 1)]
    model = PROFILES[profile].model(places, policy=policy, rng=Random(1))
    return [decide(model, Request()).replica or "nobody" for _ in range(REQUESTS)]


def picture() -> str:
    width, height = LEFT + REQUESTS * CELL + 12, TOP + len(ROWS) * (CELL + 10) + 8
    weights = ", ".join(map(str, WEIGHTS))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="13" role="img">',
        f"<title>How balancers spread {REQUESTS} requests over weights {weights}</title>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-weight="bold" fill="#222222">'
        f"{REQUESTS} requests, weights {weights}, from left to right</text>",
    ]
    for number, (profile, policy, label) in enumerate(ROWS):
        parts += line(TOP + number * (CELL + 10), label, sequence(profile, policy))
    return "\n".join([*parts, "</svg>", ""])


def line(top: int, label: str, picked: list[str]) -> list[str]:
    parts = [f'<text x="12" y="{top + 17}" fill="#222222">{label}</text>']
    for at, name in enumerate(picked):
        left = LEFT + at * CELL
        parts.append(
            f'<rect x="{left}" y="{top}" width="{CELL - 2}" height="{CELL}" rx="3" fill="{COLOURS[name]}"/>'
            f'<text x="{left + 11}" y="{top + 17}" text-anchor="middle" fill="#ffffff">{name[-1]}</text>'
        )
    return parts


def main() -> None:
    for profile, policy, label in ROWS:
        print(f"{label:26}", " ".join(name[-1] for name in sequence(profile, policy)))
    if "--write" in sys.argv[1:]:
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(picture(), encoding="utf-8")
        print(f"wrote {PICTURE.relative_to(PICTURE.parent.parent)}")


if __name__ == "__main__":
    main()
