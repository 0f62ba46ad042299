"""The five ways in which health is written down."""

from __future__ import annotations

import json
import re
from datetime import datetime
from html.parser import HTMLParser
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from lbkit.health import Outcome, State, Status, Thresholds, Vitals
from lbkit.health.accept import Format
from lbkit.health.access import Level
from lbkit.health.check import Check
from lbkit.health.formats import RENDERERS
from lbkit.health.outcome import Result
from lbkit.health.reply import make_reply
from lbkit.health.report import Endpoint, Facts, Report, report
from lbkit.health.standing import Standing, advance, view
from lbkit.health.vitals import Source
from lbkit.monitor import Health
from lbkit.service import Service
from tests.health_gateways import FakeClock, gateway

WALL = 1767225600.0
SERVICE = Service(version="1.2.3", name="shop", instance="web2")


def seen(name: str, outcome: Outcome, *, critical: bool = True, seconds: float = 0.005) -> Any:
    check = Check(name=name, critical=critical, timeout=2.0)
    result = Result(outcome=outcome, seconds=seconds, at=100.0, wall=WALL)
    standing = advance(check, Standing(status=Status.UNKNOWN), result)
    return view(check, standing, run_started_at=None, now=100.31)


VIEWS = (
    seen("database", Outcome.healthy()),
    seen("search", Outcome(Status.UNHEALTHY, "10.0.0.9:9200", "timeout"), critical=False, seconds=1.0),
    seen("queue", Outcome.degraded("40 s behind")),
)
VITALS = Vitals(
    cpu_percent=41.2,
    memory_percent=74.2,
    disk_percent=91.0,
    source=Source(
        cpu="cgroup2",
        memory="cgroup2",
        cpu_limit=0.2,
        memory_limit_bytes=268435456,
        throttled_percent=0.0,
    ),
)


def said(endpoint: Endpoint = Endpoint.DETAILED, **facts: Any) -> Report:
    known = {"state": State.READY, "views": VIEWS, "vitals": VITALS, "uptime": 3700.0, **facts}
    return report(endpoint, Facts(**known), SERVICE, verbose=bool(facts.get("verbose")))


def written(format_: Format, report_: Report, level: Level = Level.PUBLIC) -> str:
    rendering = RENDERERS[format_](report_, level)
    tail = b"" if rendering.tail is None else b"%.3f" % WALL + rendering.tail
    return (rendering.head + tail).decode()


def test_json_is_as_documented() -> None:
    assert json.loads(written(Format.JSON, said())) == {
        "status": "unhealthy",
        "timestamp": 1767225600.0,
        "version": "1.2.3",
        "state": "ready",
        "metrics": {"cpu_percent": 41.2, "memory_percent": 74.2, "disk_percent": 91.0},
        "metrics_source": {
            "cpu": "cgroup2",
            "memory": "cgroup2",
            "cpu_limit": 0.2,
            "memory_limit_bytes": 268435456,
            "throttled_percent": 0.0,
        },
        "breaches": ["disk"],
        "uptime": 3700.0,
        "checks": {
            "database": {
                "status": "healthy",
                "response_time_ms": 5.0,
                "critical": True,
                "age_ms": 310,
                "checked_at": "2026-01-01T00:00:00.000Z",
            },
            "search": {
                "status": "unhealthy",
                "error": "timeout",
                "response_time_ms": 1000.0,
                "critical": False,
                "age_ms": 310,
                "checked_at": "2026-01-01T00:00:00.000Z",
                "consecutive_failures": 1,
                "stale": False,
            },
            "queue": {
                "status": "degraded",
                "response_time_ms": 5.0,
                "critical": True,
                "age_ms": 310,
                "checked_at": "2026-01-01T00:00:00.000Z",
            },
        },
    }


def test_json_tells_an_authorised_caller_the_text() -> None:
    checks = json.loads(written(Format.JSON, said(), Level.FULL))["checks"]
    assert checks["queue"]["output"] == "40 s behind"
    assert checks["search"]["output"] == "10.0.0.9:9200"


@pytest.mark.parametrize("format_", list(Format))
@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_a_caller_who_may_read_the_status_alone_reads_no_name(format_: Format, endpoint: Endpoint) -> None:
    text = written(format_, said(endpoint, broken="deadlock"), Level.STATUS_ONLY)
    told = text.split("</style>")[-1]
    assert not [word for word in ("database", "41.2", "web2", "deadlock", "timeout") if word in told]


def test_figures_that_could_not_be_had_are_null() -> None:
    metrics = json.loads(written(Format.JSON, said(vitals=None)))["metrics"]
    assert metrics == {"cpu_percent": None, "memory_percent": None, "disk_percent": None}


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({"views": VIEWS[:1], "vitals": None}, "pass"),
        ({"vitals": None}, "warn"),
        ({}, "fail"),
    ],
)
def test_health_json_has_the_draft_s_words(facts: dict[str, Any], status: str) -> None:
    assert json.loads(written(Format.HEALTH_JSON, said(**facts)))["status"] == status


def test_health_json_follows_the_draft() -> None:
    answer = json.loads(written(Format.HEALTH_JSON, said(), Level.FULL))
    assert (answer["version"], answer["releaseId"], answer["serviceId"]) == ("1", "1.2.3", "web2")
    known = {
        "status",
        "version",
        "releaseId",
        "notes",
        "output",
        "checks",
        "links",
        "serviceId",
        "description",
    }
    assert set(answer) <= known
    for key, values in answer["checks"].items():
        component, _, measurement = key.partition(":")
        assert ":" not in measurement
        assert measurement in ("responseTime", "utilization", "") or component == "uptime"
        for value in values:
            assert value["status"] in ("pass", "warn", "fail")
            assert value["componentType"] in ("component", "datastore", "system")
            if value["status"] == "pass":
                assert "output" not in value
            if "time" in value:
                assert datetime.fromisoformat(value["time"].replace("Z", "+00:00")).timestamp() == WALL
    assert answer["checks"]["database:responseTime"][0] == {
        "componentId": "database",
        "componentType": "datastore",
        "observedValue": 5.0,
        "observedUnit": "ms",
        "status": "pass",
        "time": "2026-01-01T00:00:00.000Z",
    }
    assert answer["checks"]["search:responseTime"][0]["output"] == "timeout: 10.0.0.9:9200"
    assert answer["checks"]["disk:utilization"][0]["status"] == "fail"
    assert answer["checks"]["uptime"][0]["observedUnit"] == "s"


def test_health_json_tells_how_long_it_is_fresh() -> None:
    clock = FakeClock()
    health = Health(Service(version="1.2.3"), clock=clock, wall=clock.wall)
    health.check("database", ttl=10.0)(lambda: None)
    with gateway("wsgi", health) as get:
        headers = {"Accept": "application/health+json"}
        assert get("/health/ready", headers=headers).headers["cache-control"] == "max-age=10"
        clock.now += 4.2
        answer = get("/health/ready", headers=headers)
        assert answer.headers["cache-control"] == "max-age=5"
        assert answer.headers["content-type"] == "application/health+json"
        assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize("endpoint", list(Endpoint))
@pytest.mark.parametrize("level", list(Level))
def test_openmetrics_is_read_by_prometheus(endpoint: Endpoint, level: Level) -> None:
    families = {
        family.name: family
        for family in text_string_to_metric_families(written(Format.OPENMETRICS, said(endpoint), level))
    }
    assert families["lbkit_build"].samples[0].labels == {"version": "1.2.3", "service": "shop"}
    if endpoint is Endpoint.DETAILED and level is not Level.STATUS_ONLY:
        status = {
            sample.labels["check"]: sample.labels["status"]
            for sample in families["lbkit_check_status"].samples
            if sample.value == 1
        }
        assert status == {"database": "healthy", "search": "unhealthy", "queue": "degraded"}
        assert families["lbkit_memory_utilization_ratio"].samples[0].value == pytest.approx(0.742)
        assert families["lbkit_healthy"].samples[0].value == 0


def test_openmetrics_label_values_are_escaped() -> None:
    odd = Service(version='1"\\\n2', name="shop")
    text = written(Format.OPENMETRICS, report(Endpoint.HEALTH, Facts(state=State.READY), odd))
    (family, *_) = text_string_to_metric_families(text)
    assert family.samples[0].labels["version"] == '1"\\\n2'


def test_a_scraper_gets_200_with_the_bad_news_inside() -> None:
    reply = make_reply(said(), format_=Format.OPENMETRICS, level=Level.PUBLIC, wall=WALL)
    assert reply.code == 200
    assert make_reply(said(), format_=Format.TEXT, level=Level.PUBLIC, wall=WALL).code == 503


def test_text_is_one_line_for_each_thing() -> None:
    assert written(Format.TEXT, said()).splitlines() == [
        "unhealthy",
        "[+] database  healthy        5.0 ms  0.3 s ago",
        "[-] search    unhealthy   1000.0 ms  0.3 s ago  timeout  (not critical)",
        "[~] queue     degraded       5.0 ms  0.3 s ago",
        "[+] cpu 41.2 %",
        "[+] memory 74.2 %",
        "[-] disk 91.0 %",
        "state ready, up 3700 s, version 1.2.3",
    ]
    assert written(Format.TEXT, said(Endpoint.HEALTH)) == "healthy\n"
    ready = written(Format.TEXT, said(Endpoint.READY))
    assert "database" not in ready
    assert "search" in ready


class Page(HTMLParser):
    """Refuses what is not closed, and collects what the page would load or run."""

    VOID = frozenset({"meta", "br", "link", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.outside += [
            (tag, name) for name, _ in attrs if name in ("src", "href", "style") or name[:2] == "on"
        ]
        if tag in ("script", "link", "img", "iframe", "object"):
            self.outside.append((tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


@pytest.mark.parametrize("endpoint", list(Endpoint))
@pytest.mark.parametrize("level", list(Level))
def test_the_page_is_whole_and_loads_nothing(endpoint: Endpoint, level: Level) -> None:
    page = Page(written(Format.HTML, said(endpoint, broken="deadlock", start_failure="timeout"), level))
    assert page.outside == []
    assert "shop" in page.texts


def test_the_page_escapes_what_it_shows() -> None:
    bold = "<b>bold & <i>"
    odd = Service(version="<i>", name="<script>alert(1)</script>", instance='"x"&')
    facts = Facts(state=State.READY, views=(seen("queue", Outcome.degraded(bold)),))
    text = written(Format.HTML, report(Endpoint.DETAILED, facts, odd), Level.FULL)
    assert "<script" not in text
    assert bold not in text
    assert bold in "".join(Page(text).texts)


def test_the_policy_of_the_page_allows_its_one_style_sheet_and_nothing_else() -> None:
    import base64
    import hashlib

    rendering = RENDERERS[Format.HTML](said(), Level.PUBLIC)
    policy = dict(rendering.headers)["Content-Security-Policy"]
    (style,) = re.findall(r"<style>(.*?)</style>", rendering.head.decode(), re.S)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]


@pytest.mark.parametrize("name", ["asgi", "wsgi"])
@pytest.mark.parametrize("format_", list(Format))
def test_each_format_is_what_its_headers_say(name: str, format_: Format) -> None:
    health = Health(SERVICE, thresholds=Thresholds(cpu=101, memory=101, disk=101))
    health.check("database")(lambda: None)
    with gateway(name, health) as get:
        for path in ("/health", "/health/ready", "/health/detailed"):
            asked = get(path, headers={"Accept": format_.media_type.split(";")[0]})
            queried = get(f"{path}?format={format_.value}")
            for answer in (asked, queried):
                assert answer.status_code == 200
                assert answer.headers["content-type"] == format_.media_type
                assert int(answer.headers["content-length"]) == len(answer.content)
                assert answer.headers["vary"] == "Accept"
            assert get(path, method="HEAD", headers={"Accept": "text/html"}).content == b""
