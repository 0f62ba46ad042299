"""A pytest run over replicas: reads the options, tells the kit which test runs, and shows what it found."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lbkit.errors import ConfigError
from lbkit.testkit.annotations import github_lines, junit_properties
from lbkit.testkit.chaos import CALM, rates_of, told
from lbkit.testkit.classify import classified
from lbkit.testkit.faults import Fault
from lbkit.testkit.findings import Finding, Oracle, Report, Verdict
from lbkit.testkit.following import follow_mock, follow_monkeypatch, follow_reload
from lbkit.testkit.frameworks import put_under
from lbkit.testkit.in_memory import InMemory
from lbkit.testkit.kit import Kit
from lbkit.testkit.oracles.boot import REMEDY as SECRET_REMEDY
from lbkit.testkit.oracles.boot import BootDiff, is_secret
from lbkit.testkit.oracles.difference import DifferentialGet
from lbkit.testkit.oracles.disk import DiskWatch
from lbkit.testkit.oracles.state import StateWatch
from lbkit.testkit.oracles.state import remedy as state_remedy
from lbkit.testkit.page import render
from lbkit.testkit.settings import ISOLATIONS, Settings
from lbkit.testkit.terminal import headline, lines

__all__ = ["Controller", "Run", "start"]

WORKER_KEY = "lbkit_report"
REMEDY = "keep that state where all replicas see it, or keep clients where they are (sticky)"
LAST = 6
ROWS = 20
"""Of the trace, in the report of a test that failed."""


def start(config: pytest.Config) -> None:
    """Begin a run over replicas: in this process, or in the workers of xdist."""
    try:
        settings = settings_of(config)
        plugin = Controller(config, settings) if is_controller(config) else Run(config, settings)
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(plugin, "lbkit-run")


def settings_of(config: pytest.Config) -> Settings:
    chaos = config.getoption("replica_chaos")
    private = [name for names in config.getoption("replica_private") for name in names.split(",") if name]
    return Settings(
        replicas=config.getoption("replicas"),
        isolation=config.getoption("replica_isolation"),
        policy=config.getoption("replica_policy"),
        seed=config.getoption("replica_seed"),
        app=config.getoption("replica_app"),
        private=tuple(private or config.getini("replicas_private")),
        allow=tuple(config.getini("replicas_allow")),
        watch=config.getoption("replica_watch"),
        differ=config.getoption("replica_diff"),
        fresh=config.getoption("replica_fresh"),
        receive_timeout=float(config.getini("replicas_receive_timeout")),
        chaos=rates_of(chaos) if chaos not in (None, CALM) else {},
        calm=chaos == CALM,
    )


def is_controller(config: pytest.Config) -> bool:
    """Whether xdist runs the tests in other processes than this one."""
    return config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput")


class Reporter:
    """Finishes a report, and shows it."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self.config = config
        self.settings = settings
        self.report = Report(
            replicas=settings.replicas, isolation=settings.isolation, policy=settings.policy, private=[]
        )

    def pytest_report_header(self) -> str:
        policy = self.settings.policy.replace("_", " ")
        chaos = self.settings.chaos
        wrong = f", chaos {told(chaos)} (seed {self.settings.seed})" if chaos else ""
        return f"replicas: {self.settings.replicas}, {self.settings.isolation} isolation, {policy}{wrong}"

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if self.config.getoption("replica_classify") == "yes":
            self.report.findings = classified(self.config, self.settings, self.report)
        terminalreporter.section(headline(self.report))
        for line in lines(self.report):
            terminalreporter.write_line(line)
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in github_lines(self.report):
                terminalreporter.write_line(line)
        if file := self.config.getoption("replica_report"):
            page = file.endswith((".html", ".htm"))
            Path(file).write_text(
                render(self.report, headline=headline(self.report)) if page else self.report.as_json() + "\n",
                "utf-8",
            )

    def add_to_junit(self) -> None:
        """Properties of the suite in the file of `--junitxml`, when there is one."""
        for plugin in self.config.pluginmanager.get_plugins():
            if type(plugin).__name__ == "LogXML":
                for name, value in junit_properties(self.report).items():
                    plugin.add_global_property(name, value)


class Run(Reporter):
    """The hooks of the process that runs the tests."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        super().__init__(config, settings)
        self.kit = Kit(settings)
        self.report = self.kit.report
        self.state = StateWatch(self.kit) if settings.watch else None
        self.disk = DiskWatch(self.kit)
        self.memory = InMemory(self.kit)
        self.kit.watchers += [
            BootDiff(self.kit),
            self.memory,
            self.disk,
            *([self.state] if self.state else []),
        ]
        if settings.differ:
            self.kit.differ = DifferentialGet(self.kit)
            self.kit.watchers.append(self.kit.differ)
        self.failed: dict[str, Finding] = {}
        put_under(self.kit)
        follow_reload(self.kit.patches, self.kit.mirror)
        follow_monkeypatch(self.kit.patches, self.kit.mirror)
        follow_mock(self.kit.patches, self.kit.mirror)
        self.disk.start()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[Any]:
        self.kit.begin_test(item.nodeid, **asked(item))
        try:
            return (yield)
        finally:
            self.kit.end_test()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            check(item)
            self.kit.grow(asked(item)["replicas"])

    def pytest_pycollect_makemodule(self, module_path: Path) -> None:
        self.kit.first_party.exclude(os.path.relpath(module_path, self.config.rootpath))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Show what went wrong with a test that failed."""
        report = yield
        if report.failed and self.kit.turn.trace:
            report.sections.append(("lbkit trace", self.kit.turn.trace.table(last=ROWS)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and report.nodeid not in self.failed:
            rows = self.kit.rows(self.kit.turn)[-LAST:]
            self.failed[report.nodeid] = Finding(
                oracle=Oracle.ASSERTION,
                what=report.nodeid,
                requests=tuple(map(str, rows)),
                tests=(report.nodeid,),
                state=tuple(self.state.written_in(report.nodeid)) if self.state else (),
                faults=tuple(self.kit.turn.danger.hits) if self.kit.turn.danger else (),
                remedy=REMEDY,
                verdict=Verdict.HARNESS if self._is_blind(report.nodeid) else Verdict.UNCONFIRMED,
            )

    def _is_blind(self, test: str) -> bool:
        """Whether a failure can come from a database that forked replicas have copies of."""
        return self.kit.turn.cloned and test in self.memory.used_by

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self.report.private = self.kit.first_party.packages()
        for watcher in self.kit.watchers:
            watcher.report(self.report)
        secret = any(map(is_about_secrets, self.report.of(Oracle.BOOT)))
        for each in self.failed.values():
            advice = state_remedy(each.state[0].partition(" ")[0]) if each.state else REMEDY
            self.report.findings.append(
                replace(each, remedy=SECRET_REMEDY if secret and not each.state else advice)
            )
        self.add_to_junit()
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput[WORKER_KEY] = self.report.as_json()

    def pytest_unconfigure(self) -> None:
        self.disk.stop()
        self.kit.close()


class Controller(Reporter):
    """The hooks of the process that lets xdist's workers run the tests: it puts their reports together."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        text = getattr(node, "workeroutput", {}).get(WORKER_KEY)
        if text is not None:
            self.report.add(Report.from_json(text))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        self.add_to_junit()


def is_about_secrets(finding: Finding) -> bool:
    return is_secret(finding.what.partition(" ")[0])


def asked(item: pytest.Item) -> dict[str, Any]:
    """What a test's markers ask for."""
    allow = [pattern for marker in item.iter_markers("stateful_ok") for pattern in marker.args]
    replicas = item.get_closest_marker("replicas")
    how = replicas.kwargs if replicas else {}
    return {
        "single": item.get_closest_marker("single_replica") is not None,
        "policy": how.get("policy", ""),
        "isolation": how.get("isolation", ""),
        "replicas": (replicas.args[0] if replicas and replicas.args else 0),
        "allow": tuple(allow),
        "faults": () if has_cluster(item) else tuple(how.get("faults", ())),
    }


def has_cluster(item: pytest.Item) -> bool:
    """Whether the faults of its marker are its own cluster's."""
    return "cluster" in getattr(item, "fixturenames", ())


def check(item: pytest.Item) -> None:
    """Raises UsageError for a marker that asks for what there is not."""
    marker = item.get_closest_marker("replicas")
    if marker is None:
        return
    count, isolation = marker.args[0] if marker.args else 1, marker.kwargs.get("isolation", "auto")
    if not isinstance(count, int) or count < 1:
        raise pytest.UsageError(f"{item.nodeid}: need at least 1 replica, got replicas({count!r})")
    if isolation not in ISOLATIONS:
        known = ", ".join(ISOLATIONS)
        raise pytest.UsageError(f"{item.nodeid}: need an isolation of {known}, got {isolation!r}")
    wrong = [fault for fault in marker.kwargs.get("faults", ()) if not isinstance(fault, Fault)]
    if wrong:
        raise pytest.UsageError(
            f"{item.nodeid}: need faults such as hang() or error(503), got replicas(faults={wrong!r})"
        )
