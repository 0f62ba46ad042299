"""`lbkit serve`: an app as several replicas behind one balancer, all in one process."""

from __future__ import annotations

from pathlib import Path

import click

from lbkit.errors import MissingExtra

__all__ = ["serve"]


@click.command()
@click.argument("target")
@click.option("--replicas", default=3, show_default=True, help="How many copies of the app.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, help="The port to listen on; 0 takes a free one.")
@click.option("--factory", is_flag=True, help="Insist that TARGET is a function that makes an app.")
@click.option("--app-dir", type=click.Path(path_type=Path), help="Where modules are looked for, if not here.")
@click.option("--reload", is_flag=True, help="Start again when a source file changes.")
def serve(
    target: str, replicas: int, host: str, port: int, factory: bool, app_dir: Path | None, reload: bool
) -> None:
    """Run an app as several replicas behind one balancer.

    TARGET is package.module:app, package.module:create_app, package.module, or a path to a .py file,
    with :name after it or without. The app may be WSGI (Flask, Django) or ASGI (Starlette, FastAPI). A
    function that makes an app is called once for each replica; an app object is shared by all of them.

    Each line names the replica that answered, as does the header x-lbkit-replica. Ctrl-C stops with exit code
    0. A mistake is told in one line, with exit code 2; a replica whose lifespan fails at the start, with 3.
    """
    try:
        from lbkit.cli.server import Plan, run, run_again_and_again
    except ModuleNotFoundError as error:
        if error.name in ("rich", "uvicorn"):
            raise MissingExtra(error.name, extra="serve") from error
        raise
    plan = Plan(target=target, replicas=replicas, host=host, port=port, factory=factory, app_dir=app_dir)
    if reload:
        run_again_and_again(plan)
    else:
        run(plan)
