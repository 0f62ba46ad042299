"""`lbkit replay FILE...`: does lbkit decide what a real balancer was recorded to decide?"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from lbkit.balancer.recorded import Verdict
from lbkit.balancer.recorded import replay as replay_one
from lbkit.errors import ConfigError

__all__ = ["replay"]


@click.command()
@click.argument(
    "files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="FILE..."
)
@click.pass_context
def replay(context: click.Context, files: tuple[Path, ...]) -> None:
    """Replay recordings of real balancers in virtual time.

    FILE is a recording, or a folder of them. A line for each: `ok`, `differs at step N: ...` or
    `not modelled: ...`. Exit code 1 when one differs.
    """
    counts: Counter[str] = Counter()
    for path in _recordings(files):
        verdict = _verdict(path)
        counts[verdict.outcome] += 1
        click.echo(f"{verdict.name}: {verdict.message}")
    reproduced = f"reproduced {counts['ok']} of {sum(counts.values())}"
    click.echo(f"{reproduced}, differs {counts['differs']}, not modelled {counts['not modelled']}")
    context.exit(1 if counts["differs"] else 0)


def _recordings(files: Sequence[Path]) -> Iterator[Path]:
    for path in files:
        if not path.is_dir():
            yield path
            continue
        found = sorted(path.glob("*.json"))
        if not found:
            raise ConfigError(f"need a folder with recordings (*.json), got {str(path)!r}")
        yield from found


def _verdict(path: Path) -> Verdict:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise ConfigError(f"need a JSON object, got {type(data).__name__}")
        return replay_one(data, name=path.stem)
    except (ConfigError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
