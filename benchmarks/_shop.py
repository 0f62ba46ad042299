"""An app of the smallest kind, in a module that each replica has a copy of."""

import flask

app = flask.Flask(__name__)


@app.get("/")
def hello() -> str:
    return "hello"
