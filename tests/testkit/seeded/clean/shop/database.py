import sqlite3

from flask import current_app, g

SCHEMA = """
CREATE TABLE IF NOT EXISTS page (name TEXT PRIMARY KEY, body TEXT);
CREATE TABLE IF NOT EXISTS failure (name TEXT PRIMARY KEY, count INTEGER);
CREATE TABLE IF NOT EXISTS hit (client TEXT PRIMARY KEY, count INTEGER);
CREATE TABLE IF NOT EXISTS picture (name TEXT PRIMARY KEY, data BLOB);
"""


def get():
    if "database" not in g:
        g.database = sqlite3.connect(current_app.config["DATABASE"])
    return g.database


def close(_error=None):
    database = g.pop("database", None)
    if database is not None:
        database.close()


def init_app(app):
    app.teardown_appcontext(close)


def create():
    get().executescript(SCHEMA)
    get().execute("INSERT INTO page VALUES ('terms', 'No refunds')")
    get().commit()


def count(table, name):
    """Add one, and say how many there are now."""
    column = "client" if table == "hit" else "name"
    get().execute(
        f"INSERT INTO {table} VALUES (?, 1) ON CONFLICT({column}) DO UPDATE SET count = count + 1", [name]
    )
    get().commit()
    return get().execute(f"SELECT count FROM {table} WHERE {column} = ?", [name]).fetchone()[0]
