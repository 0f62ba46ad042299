"""`lbkit serve`: an app as several replicas behind one balancer, in one process or each in its own."""

from __future__ import annotations

from pathlib import Path

import click

from lbkit.balancer.profile import PROFILES
from lbkit.errors import MissingExtra

__all__ = ["serve"]


@click.command()
@click.argument("target")
@click.option("--replicas", default=3, show_default=True, help="How many copies of the app.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8000, show_default=True, help="The port to listen on; 0 takes a free one.")
@click.option("--factory", is_flag=True, help="Insist that TARGET is a function that makes an app.")
@click.option("--app-dir", type=click.Path(path_type=Path), help="Where modules are looked for, if not here.")
@click.option("--profile", default="plain", show_default=True, help=f"Decide as {', '.join(PROFILES)}.")
@click.option("--policy", default="", help="In the words of the profile; its default when left out.")
@click.option("--weight", multiple=True, metavar="NAME=N", help="Such as web1=3; again for each replica.")
@click.option("--check", default="", metavar="PATH", help="Ask each replica there whether it is well.")
@click.option("--sticky", is_flag=True, help="Keep each client with its replica, by a cookie.")
@click.option("--route", multiple=True, metavar="COND=POOL", help="Such as '/api/*=api'; first match wins.")
@click.option(
    "--isolation",
    type=click.Choice(["none", "process"]),
    default="none",
    show_default=True,
    help="All replicas in this process, or each in a process of its own.",
)
@click.option("--reload", is_flag=True, help="Start again when a source file changes.")
def serve(
    target: str,
    replicas: int,
    host: str,
    port: int,
    factory: bool,
    app_dir: Path | None,
    profile: str,
    policy: str,
    weight: tuple[str, ...],
    check: str,
    sticky: bool,
    route: tuple[str, ...],
    isolation: str,
    reload: bool,
) -> None:
    """Run an app as several replicas behind one balancer.

    TARGET is package.module:app, package.module:create_app, package.module, or a path to a .py file,
    with :name after it or without. The app may be WSGI (Flask, Django) or ASGI (Starlette, FastAPI). A
    function that makes an app is called once for each replica; an app object is shared by all of them, unless
    --isolation process gives each replica a process, and so modules and memory, of its own.

    With --route there are several pools, of --replicas each: for '/api/*=api' and '*=web' their replicas are
    api1, api2, ... and web1, web2, ... The first route that a request meets decides.

    Each line names the replica that answered, as does the header x-lbkit-replica. Ctrl-C stops with exit code
    0. A mistake is told in one line, with exit code 2; a replica whose lifespan fails at the start, with 3.
    """
    try:
        from lbkit.cli.door import Door
        from lbkit.cli.server import Plan, run, run_again_and_again
    except ModuleNotFoundError as error:
        if error.name in ("rich", "uvicorn"):
            raise MissingExtra(error.name, extra="serve") from error
        raise
    door = Door(
        replicas=replicas,
        profile=profile,
        policy=policy,
        weights=weight,
        check=check,
        sticky=sticky,
        routes=route,
    )
    plan = Plan(
        target=target,
        door=door,
        host=host,
        port=port,
        factory=factory,
        app_dir=app_dir,
        apart=isolation == "process",
    )
    if reload:
        run_again_and_again(plan)
    else:
        run(plan)
