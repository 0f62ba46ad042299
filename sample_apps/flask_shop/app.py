"""Three Kettles: a shop with a catalogue, a cart and a login, at home behind three replicas.

Every request may reach another replica, so nothing about a visitor stays in one:

==============  ==================================================  =======================
what            where                                               because
==============  ==================================================  =======================
catalogue       a file, read at start, never written                the same in each replica
cart, login     Flask's session: a cookie, signed with one key,     it comes with the request,
                or in Redis, where SHOP_SESSIONS says so            or each replica asks for it
CSRF token      the same session                                    the same
last order      the same session                                    the same
==============  ==================================================  =======================
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, flash, redirect, render_template, request, session, url_for
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as BaseResponse

from lbkit.sessions import SessionOptions
from lbkit_flask import LBKit

from . import csrf
from .account import DEMO_NAME, DEMO_PASSWORD, authenticate
from .cart import MAX_QUANTITY, Cart, CartError
from .catalogue import Catalogue, Product, euros

CATALOGUE = Path(__file__).with_name("catalogue.json")

# Good on a laptop and nowhere else: whoever knows the key can write any session.
# It must be one constant: a random one would differ in each replica, and log everybody out.
DEVELOPMENT_KEY = "development-only-set-SHOP_SECRET_KEY"

PAGES_AFTER_LOGIN = ("catalogue", "cart", "checkout")


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """One shop. `config` is laid over Flask's own, for tests: SECRET_KEY, CATALOGUE."""
    app = Flask(__name__)
    app.config.from_mapping(
        SECRET_KEY=os.environ.get("SHOP_SECRET_KEY") or DEVELOPMENT_KEY,
        SESSION_COOKIE_NAME="three_kettles",
        SESSION_COOKIE_SAMESITE="Lax",
        # Set it where the shop is reached over https; a browser would not send the cookie over http.
        SESSION_COOKIE_SECURE=os.environ.get("SHOP_HTTPS") == "1",
        MAX_CONTENT_LENGTH=64 * 1024,
        SEND_FILE_MAX_AGE_DEFAULT=300,  # seconds; the style sheet need not be asked for on every page
        CATALOGUE=CATALOGUE,
        # redis://..., where a logout must be final; without it the session is in the cookie itself.
        SESSIONS=os.environ.get("SHOP_SESSIONS") or None,
    )
    app.config.from_mapping(config or {})
    app.jinja_env.globals.update(MAX_QUANTITY=MAX_QUANTITY, DEMO=(DEMO_NAME, DEMO_PASSWORD))
    app.jinja_env.filters["euros"] = euros
    csrf.protect(app)
    catalogue = Catalogue.load(app.config["CATALOGUE"])
    add_health(app, catalogue)
    add_pages(app, catalogue)
    add_manners(app)
    return app


def shared_sessions(app: Flask) -> dict[str, Any]:
    """What LBKit must know to keep the sessions where all replicas see them."""
    if app.config["SESSIONS"] is None:
        return {}
    options = SessionOptions(
        cookie=app.config["SESSION_COOKIE_NAME"],
        secure=app.config["SESSION_COOKIE_SECURE"],
        watch=("user",),  # who is logged in: when it changes, so does the id
    )
    return {
        "sessions": app.config["SESSIONS"],
        "secret_keys": [app.secret_key],
        "session_options": options,
    }


def add_health(app: Flask, catalogue: Catalogue) -> None:
    lbkit = LBKit(app, version="1.0.0", **shared_sessions(app))

    @lbkit.check("catalogue")
    def catalogue_is_the_one_on_disk() -> bool:
        """Replicas that started before and after a new price list sell at two prices."""
        return Catalogue.load(app.config["CATALOGUE"]) == catalogue


def add_pages(app: Flask, catalogue: Catalogue) -> None:
    def read_cart() -> Cart:
        return Cart(session.get("cart", {}), catalogue)

    def product_or_404(sku: str) -> Product:
        return catalogue.find(sku) or abort(404, f"We sell nothing called {sku!r}.")

    @app.context_processor
    def everywhere() -> dict[str, Any]:
        return {"cart": read_cart(), "user": session.get("user")}

    @app.get("/", endpoint="catalogue")
    def show_catalogue() -> str:
        return render_template("catalogue.html", products=catalogue)

    @app.get("/products/<sku>")
    def product(sku: str) -> str:
        return render_template("product.html", product=product_or_404(sku))

    @app.get("/cart", endpoint="cart")
    def show_cart() -> str:
        return render_template("cart.html")

    @app.post("/cart")
    def add_to_cart() -> BaseResponse:
        product = product_or_404(request.form.get("sku", ""))
        return change(lambda cart: cart.add(product, quantity_or_400()), f"{product.name}: in your cart.")

    @app.post("/cart/<sku>")
    def set_quantity(sku: str) -> BaseResponse:
        product = product_or_404(sku)
        return change(lambda cart: cart.set(product, quantity_or_400()), f"{product.name}: changed.")

    def change(edit: Callable[[Cart], None], done: str) -> BaseResponse:
        cart = read_cart()
        try:
            edit(cart)
            session["cart"] = cart.quantities
            flash(done)
        except CartError as error:
            flash(str(error), "error")
        return redirect(url_for("cart"), 303)

    @app.route("/login", methods=["GET", "POST"])
    def login() -> BaseResponse | tuple[str, int] | str:
        then = request.args.get("then", "catalogue")
        # A closed set of pages: a link to our login must not be able to send anybody elsewhere.
        if then not in PAGES_AFTER_LOGIN:
            abort(400, f"need then to be one of {', '.join(PAGES_AFTER_LOGIN)}, got {then!r}")
        if request.method == "GET":
            return render_template("login.html", then=then)
        name = request.form.get("name", "").strip()
        if not authenticate(name, request.form.get("password", "")):
            flash("That name and password do not belong together.", "error")
            return render_template("login.html", then=then, name=name), 401
        session["user"] = name
        csrf.renew()
        flash(f"Welcome, {name}.")
        return redirect(url_for(then), 303)

    @app.post("/logout")
    def logout() -> BaseResponse:
        session.clear()
        flash("You are logged out, and your cart is empty.")
        return redirect(url_for("catalogue"), 303)

    @app.get("/checkout", endpoint="checkout")
    def review() -> BaseResponse | str:
        return ask_for_what_is_missing() or render_template("checkout.html")

    @app.post("/checkout")
    def place_order() -> BaseResponse:
        if missing := ask_for_what_is_missing():
            return missing
        cart = read_cart()
        session["order"] = {
            # Random, because three replicas that count would all begin at order 1.
            "number": secrets.token_hex(4).upper(),
            "lines": cart.rows(),
            "cents": cart.cents,
        }
        session.pop("cart")
        # To another page, so that a reload shows the order and does not place it again.
        return redirect(url_for("order"), 303)

    def ask_for_what_is_missing() -> BaseResponse | None:
        if not read_cart():
            flash("Your cart is empty: there is nothing to check out.", "error")
            return redirect(url_for("cart"), 303)
        if "user" not in session:
            flash("Log in to check out.")
            return redirect(url_for("login", then="checkout"), 303)
        return None

    @app.get("/order")
    def order() -> str:
        order = session.get("order") or abort(404, "You have not ordered anything yet.")
        return render_template("order.html", order=order)


def quantity_or_400() -> int:
    text = request.form.get("quantity", "1")
    # Six characters: enough for every typing mistake, too few for a number that takes long to read.
    if not (text.isascii() and text.isdecimal() and len(text) <= 6):
        abort(400, f"need quantity to be a whole number, got {text[:20]!r}")
    return int(text)


def add_manners(app: Flask) -> None:
    @app.errorhandler(HTTPException)
    def explain(error: HTTPException) -> BaseResponse:
        response = error.get_response()
        if response.status_code >= 400:
            response.set_data(render_template("error.html", error=error))
        return response

    @app.after_request
    def headers(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = (
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; "
            "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.headers["Referrer-Policy"] = "same-origin"
        if request.endpoint != "static":
            response.headers["Cache-Control"] = "no-store"  # the header shows whose cart it is
        return response
