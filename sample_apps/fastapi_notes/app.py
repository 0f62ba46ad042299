"""Notes: a FastAPI service over one database, whose health says whether it is there.

======================================  ====================================================
GET /                                   the page
GET, POST /api/notes                    ?q=&limit=&offset=   search; write one
GET, PUT, DELETE /api/notes/{number}    a PUT names the version it changes, or gets a 409
GET /docs                               the same, from the OpenAPI schema
GET /health/ready                       503 while the database is away
======================================  ====================================================
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path as File
from typing import Annotated, NoReturn

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles

from lbkit_fastapi import LBKit

from .notebook import LARGEST, Change, Draft, Note, Notebook, Notes, Outdated

HERE = File(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
router = APIRouter(prefix="/api/notes", tags=["notes"])


def create_app(path: File | None = None) -> FastAPI:
    """One replica. All replicas share one file: `path`, or NOTES_FILE."""
    file = path or File(os.environ.get("NOTES_FILE") or HERE / "notes.sqlite3")

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(Notebook.create, file)
        yield

    app = FastAPI(title="Notes", version="1.0.0", lifespan=lifespan)
    app.state.file = file
    app.include_router(router)
    app.mount("/static", StaticFiles(directory=HERE / "static"))
    app.get("/", include_in_schema=False)(page)
    app.exception_handler(RequestValidationError)(invalid)
    app.exception_handler(Outdated)(conflict)
    app.exception_handler(sqlite3.OperationalError)(unavailable)
    lbkit = LBKit(app, version="1.0.0")

    @lbkit.check("database")
    def database() -> None:
        with Notebook.open(file) as notebook:
            notebook.count()

    return app


def opened(request: Request) -> Iterator[Notebook]:
    """A dependency: the notebook, open for the length of one request."""
    with Notebook.open(request.app.state.file) as notebook:
        yield notebook


Opened = Annotated[Notebook, Depends(opened)]
Number = Annotated[int, Path(ge=1, le=LARGEST)]


@router.get("")
def search(
    notebook: Opened,
    q: Annotated[str, Query(max_length=200, description="part of a title or of a body")] = "",
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    offset: Annotated[int, Query(ge=0, le=LARGEST)] = 0,
) -> Notes:
    return notebook.search(q, limit=limit, offset=offset)


@router.post("", status_code=201)
def write(notebook: Opened, draft: Draft, response: Response) -> Note:
    note = notebook.add(draft)
    response.headers["location"] = f"/api/notes/{note.id}"
    return note


@router.get("/{number}", responses={404: {}})
def read(notebook: Opened, number: Number) -> Note:
    return notebook.find(number) or missing(number)


@router.put("/{number}", responses={404: {}, 409: {"description": "somebody changed it in between"}})
def change(notebook: Opened, number: Number, change: Change) -> Note:
    return notebook.change(number, change) or missing(number)


# response_model=None: FastAPI before 0.112 takes the "None" of a postponed annotation for a body.
@router.delete("/{number}", status_code=204, response_model=None, responses={404: {}})
def remove(notebook: Opened, number: Number) -> None:
    if not notebook.remove(number):
        missing(number)


def missing(number: int) -> NoReturn:
    raise HTTPException(404, f"there is no note {number}")


def page() -> FileResponse:
    return FileResponse(HERE / "static" / "index.html", headers={"content-security-policy": POLICY})


def invalid(_request: Request, error: Exception) -> Response:
    """What is wrong and where, without the input: FastAPI's own answer repeats it, all of it.

    `json.dumps` escapes what UTF-8 cannot say. A field named by half a surrogate pair is valid JSON,
    and quoting it as it is would make a 500 of the client's mistake.
    """
    faults = error.errors() if isinstance(error, RequestValidationError) else []
    detail = [{"loc": fault["loc"], "msg": fault["msg"], "type": fault["type"]} for fault in faults]
    return Response(json.dumps({"detail": detail}), 422, media_type="application/json")


def conflict(_request: Request, error: Exception) -> JSONResponse:
    current = error.current.model_dump(mode="json") if isinstance(error, Outdated) else None
    return JSONResponse({"detail": str(error), "current": current}, 409)


def unavailable(_request: Request, _error: Exception) -> JSONResponse:
    # What failed is in the log and in /health/detailed; a stranger learns that it is not their fault.
    return JSONResponse({"detail": "the notes are away for the moment"}, 503, {"retry-after": "1"})
