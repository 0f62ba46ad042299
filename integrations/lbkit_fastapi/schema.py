"""The health endpoints as OpenAPI describes them."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from lbkit.service import Service

__all__ = ["document"]

TAG = "health"
NUMBER = {"type": "number"}
STATUS = {"type": "string", "enum": ["healthy", "degraded", "unhealthy", "starting", "draining"]}
CHECK_STATUS = {"type": "string", "enum": ["healthy", "degraded", "unhealthy", "unknown"]}
PERCENT = {"anyOf": [NUMBER, {"type": "null"}]}
CHECK: dict[str, Any] = {
    "type": "object",
    "required": ["status", "critical"],
    "properties": {
        "status": CHECK_STATUS,
        "critical": {"type": "boolean"},
        "error": {"type": "string", "description": "timeout, connection, auth, or error: and a type"},
        "response_time_ms": NUMBER,
        "age_ms": NUMBER,
        "checked_at": {"type": "string", "format": "date-time"},
    },
}
CHECKS = {"type": "object", "additionalProperties": CHECK}
BASIC: dict[str, Any] = {
    "type": "object",
    "required": ["status", "timestamp", "version"],
    "properties": {
        "status": STATUS,
        "timestamp": {"type": "number", "description": "Unix seconds"},
        "version": {"type": "string"},
    },
}
READY: dict[str, Any] = {**BASIC, "properties": {**BASIC["properties"], "checks": CHECKS}}
DETAILED: dict[str, Any] = {
    **BASIC,
    "properties": {
        **BASIC["properties"],
        "state": {"type": "string", "enum": ["starting", "ready", "draining", "stopped"]},
        "metrics": {
            "type": "object",
            "properties": {f"{name}_percent": PERCENT for name in ("cpu", "memory", "disk")},
        },
        "metrics_source": {"type": "object"},
        "checks": CHECKS,
    },
}
ONE: dict[str, Any] = {
    **BASIC,
    "properties": {**BASIC["properties"], **CHECK["properties"], "status": STATUS},
}


def document(app: FastAPI, service: Service) -> None:
    """Add the endpoints to the schema that `app.openapi` makes."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        paths = schema.setdefault("paths", {})
        for path, operation in _operations(service).items():
            paths.setdefault(path, {"get": operation})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the schema


def _operations(service: Service) -> dict[str, dict[str, Any]]:
    path = service.health_path
    named = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
    found = {
        path: _operation("May this replica get traffic?", BASIC),
        f"{path}/live": _operation("Must this replica be restarted?", BASIC),
        f"{path}/ready": _operation("May it get traffic, and can it serve it?", READY),
        f"{path}/startup": _operation("Has it started?", BASIC),
        f"{path}/detailed": _operation("How is everything?", DETAILED),
        f"{path}/checks/{{name}}": {**_operation("How is this one check?", ONE), "parameters": named},
    }
    if service.kubernetes:
        for alias, name in (("/livez", "live"), ("/readyz", "ready"), ("/startupz", "startup")):
            found[alias] = found[f"{path}/{name}"]
    return found


def _operation(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}}
    return {
        "tags": [TAG],
        "summary": summary,
        "responses": {
            "200": {"description": "Yes, or well enough", "content": content},
            "503": {"description": "No", "content": content},
        },
    }
