from flask import Blueprint, abort, jsonify, request

from shop import limits, lockout, pictures, sessions, texts

pages = Blueprint("pages", __name__)


@pages.before_request
def limit():
    if limits.exceeded(request.remote_addr):
        abort(429)


@pages.get("/page/<name>")
def page(name):
    return texts.of(name)


@pages.post("/login")
def login():
    name = request.form["name"]
    if lockout.locked(name):
        abort(403)
    if request.form["password"] != "x":
        lockout.failed(name)
        abort(401)
    sessions.begin(name)
    return "welcome"


@pages.post("/cart")
def add():
    return jsonify(sessions.add(request.form["item"]))


@pages.get("/cart")
def cart():
    return jsonify(sessions.items())


@pages.put("/picture/<name>")
def put(name):
    pictures.save(name, request.get_data())
    return "", 204


@pages.get("/picture/<name>")
def get(name):
    return pictures.load(name)
