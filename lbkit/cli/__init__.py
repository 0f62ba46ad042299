"""The command line. A command raises LbkitError, and the user reads one line on stderr; exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from lbkit.errors import LbkitError, MissingExtra

try:
    import click
except ModuleNotFoundError as error:
    raise MissingExtra("click", extra="serve") from error

from lbkit.cli.doctor import doctor
from lbkit.cli.drain import drain, status, undrain
from lbkit.cli.exec import exec_
from lbkit.cli.explain import explain
from lbkit.cli.probe import probe
from lbkit.cli.replay import replay
from lbkit.cli.serve import serve
from lbkit.cli.sessions import sessions

__all__ = ["main"]

MISTAKE = 2


class Commands(click.Group):
    """A group whose errors are one line, where click would print its usage as well."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        run = partial(super().main, args, prog_name, complete_var, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        try:
            sys.exit(run())
        except click.ClickException as error:
            sys.exit(_told(error.format_message()))
        except LbkitError as error:
            sys.exit(_told(str(error)))
        except click.Abort:
            sys.exit(1)


@click.group(cls=Commands, invoke_without_command=True)
@click.version_option(package_name="lbkit-web", prog_name="lbkit")
@click.pass_context
def main(context: click.Context) -> None:
    """Apps that behave well behind a load balancer, and proof that they do."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


main.add_command(serve)
main.add_command(probe)
main.add_command(exec_)
main.add_command(drain)
main.add_command(undrain)
main.add_command(status)
main.add_command(replay)
main.add_command(explain)
main.add_command(sessions)
main.add_command(doctor)


def _told(message: str) -> int:
    click.echo(f"Error: {' '.join(message.split())}", err=True)
    return MISTAKE
