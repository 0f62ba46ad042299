"""`lbkit probe URL`: see `lbkit.healthcheck`, which does it without click."""

from __future__ import annotations

import click

from lbkit import healthcheck

__all__ = ["probe"]


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def probe(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Ask a health endpoint once: exit code 0 if it is healthy, 1 if not."""
    context.exit(healthcheck.main(arguments))
