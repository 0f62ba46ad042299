"""The shop behind three replicas: a visitor's cart, login and order do not depend on who answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from lbkit.asgi import Balancer
from sample_apps.flask_shop.app import CATALOGUE, create_app
from sample_apps.flask_shop.cart import MAX_QUANTITY
from tests.redis_servers import server
from tests.sample_apps.live import LIMIT, replica, served, token

GOOD = {"name": "demo", "password": "tea-for-three"}


@pytest.fixture(scope="module", params=["cookie", "redis"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The shop with its sessions in the cookie, and in Redis."""
    with ExitStack() as stack:
        config = {}
        if request.param == "redis":
            config["SESSIONS"] = stack.enter_context(server(tmp_path_factory.mktemp("redis"))).url
        make = partial(create_app, config)
        yield stack.enter_context(served(Balancer.from_factory(make, replicas=3)))


class Visitor:
    """A browser without scripts: keeps cookies, fills in the hidden field, remembers who answered."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self.answered: list[str] = []
        self.token = token(self.get("/"))

    def get(self, path: str) -> httpx.Response:
        return self.seen(self.client.get(path))

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.seen(self.client.post(path, data={"csrf_token": self.token, **fields}))

    def seen(self, answer: httpx.Response) -> httpx.Response:
        self.answered.append(replica(answer))
        return answer

    def log_in(self) -> None:
        assert self.post("/login", **GOOD).status_code == 303
        self.token = token(self.get("/"))


@pytest.fixture
def visitor(url: str) -> Iterator[Visitor]:
    with browser(url) as client:
        yield Visitor(client)


def browser(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=LIMIT)


def cart(page: httpx.Response) -> str:
    assert page.status_code == 200
    return page.text


def test_a_visit_from_cart_to_order_works_while_every_request_lands_on_another_replica(
    visitor: Visitor,
) -> None:
    assert visitor.post("/cart", sku="kettle", quantity="2").headers["location"] == "/cart"
    assert visitor.post("/cart", sku="honey", quantity="3").status_code == 303
    assert "€124.70" in cart(visitor.get("/cart"))
    assert visitor.get("/checkout").headers["location"] == "/login?then=checkout"
    assert visitor.post("/login?then=checkout", **GOOD).headers["location"] == "/checkout"
    review = visitor.get("/checkout")
    assert "Place the order" in review.text
    visitor.token = token(review)
    assert visitor.post("/checkout").headers["location"] == "/order"
    order = visitor.get("/order").text
    assert "Enamel kettle" in order
    assert "€124.70" in order
    assert "Nothing in it yet" in visitor.get("/cart").text
    assert all(before != after for before, after in pairwise(visitor.answered))
    assert set(visitor.answered) == {"web1", "web2", "web3"}


def test_the_order_is_the_same_whichever_replica_shows_it(visitor: Visitor) -> None:
    visitor.post("/cart", sku="teapot")
    visitor.log_in()
    visitor.post("/checkout")
    orders = {replica(answer): answer.text for answer in (visitor.get("/order") for _ in range(3))}
    assert len(orders) == 3
    assert len(set(orders.values())) == 1


def test_replicas_with_keys_of_their_own_lose_the_cart() -> None:
    """What the one key is for: the same visit, and each replica signs with another."""
    apps = [create_app({"SECRET_KEY": key}) for key in ("one", "two")]
    with served(Balancer(apps)) as url, browser(url) as client:
        page = client.get("/products/kettle")
        refused = client.post("/cart", data={"csrf_token": token(page), "sku": "kettle"})
    assert refused.status_code == 400


def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_SECRET_KEY", "from outside")
    assert create_app().secret_key == "from outside"
    monkeypatch.setenv("SHOP_SECRET_KEY", "")
    assert "development" in str(create_app().secret_key)


def test_quantities_change_and_zero_takes_a_product_out(visitor: Visitor) -> None:
    visitor.post("/cart", sku="honey", quantity="1")
    visitor.post("/cart", sku="honey", quantity="1")
    assert "€17.80" in cart(visitor.get("/cart"))
    visitor.post("/cart/honey", quantity="5")
    assert "€44.50" in cart(visitor.get("/cart"))
    visitor.post("/cart/honey", quantity="0")
    assert "Nothing in it yet" in cart(visitor.get("/cart"))


@pytest.mark.parametrize(
    ("path", "quantity", "rule"),
    [
        ("/cart", "0", "need quantity &gt;= 1 to add, got 0"),
        ("/cart", str(MAX_QUANTITY), f"need 0 &lt;= quantity &lt;= {MAX_QUANTITY} of Pair of cups, got 21"),
        ("/cart/cup-pair", "999999", "got 999999"),
    ],
)
def test_a_quantity_we_do_not_sell_is_refused_with_the_rule(
    visitor: Visitor, path: str, quantity: str, rule: str
) -> None:
    visitor.post("/cart", sku="cup-pair")
    assert visitor.post(path, sku="cup-pair", quantity=quantity).status_code == 303
    page = cart(visitor.get("/cart"))
    assert rule in page
    assert "€22.00" in page


@pytest.mark.parametrize("quantity", ["", "two", "-1", "1.5", "²", "٣", "1" * 5000])
def test_a_quantity_that_is_no_number_is_refused(visitor: Visitor, quantity: str) -> None:
    answer = visitor.post("/cart", sku="kettle", quantity=quantity)
    assert answer.status_code == 400
    assert "need quantity to be a whole number" in answer.text


def test_an_unknown_product_is_not_found(visitor: Visitor) -> None:
    assert visitor.post("/cart", sku="<samovar>").status_code == 404
    page = visitor.get("/products/<samovar>")
    assert page.status_code == 404
    assert "&lt;samovar&gt;" in page.text


@pytest.mark.parametrize(
    "wrong", [{"password": "tea-for-two"}, {"name": "root"}, {"name": ""}, {"password": ""}]
)
def test_a_wrong_name_or_password_is_refused_without_saying_which(
    visitor: Visitor, wrong: dict[str, str]
) -> None:
    answer = visitor.post("/login", **{**GOOD, **wrong})
    assert answer.status_code == 401
    assert "That name and password do not belong together." in answer.text
    assert "Log out" not in visitor.get("/").text


def test_what_was_typed_into_the_login_comes_back_escaped(visitor: Visitor) -> None:
    page = visitor.post("/login", name='"><script>alert(1)</script>', password="x").text
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


@pytest.mark.parametrize("sent", [None, "", "guessed", "ü"])
def test_a_form_without_the_token_of_the_session_is_refused(visitor: Visitor, sent: str | None) -> None:
    fields = {"sku": "kettle"} if sent is None else {"sku": "kettle", "csrf_token": sent}
    answer = visitor.client.post("/cart", data=fields)
    assert answer.status_code == 400
    assert "This form is not from this session" in answer.text
    assert "Nothing in it yet" in visitor.get("/cart").text


def test_the_token_of_another_session_is_refused(visitor: Visitor, url: str) -> None:
    with browser(url) as other:
        visitor.token = Visitor(other).token
    assert visitor.post("/cart", sku="kettle").status_code == 400


def test_a_login_makes_the_earlier_token_worthless(visitor: Visitor) -> None:
    earlier = visitor.token
    visitor.log_in()
    assert visitor.token != earlier
    visitor.token = earlier
    assert visitor.post("/cart", sku="kettle").status_code == 400


def test_a_session_that_we_did_not_sign_is_no_session(visitor: Visitor) -> None:
    visitor.log_in()
    cookie = visitor.client.cookies["three_kettles"]
    shown = {
        sent: httpx.get(visitor.client.base_url, headers={"cookie": f"three_kettles={sent}"}).text
        for sent in (cookie, "x" + cookie[1:], cookie[:-1], "")
    }
    assert [sent for sent, page in shown.items() if "Log out demo" in page] == [cookie]


def test_a_logout_empties_the_session(visitor: Visitor) -> None:
    visitor.log_in()
    visitor.post("/cart", sku="kettle")
    visitor.post("/logout")
    page = cart(visitor.get("/cart"))
    assert "Log out" not in page
    assert "Nothing in it yet" in page


def test_an_empty_cart_cannot_be_checked_out(visitor: Visitor) -> None:
    visitor.log_in()
    assert visitor.post("/checkout").headers["location"] == "/cart"
    assert visitor.get("/order").status_code == 404


@pytest.mark.parametrize("then", ["https://example.com", "//example.com", "order", ""])
def test_the_login_sends_nobody_to_a_page_that_is_not_ours(visitor: Visitor, then: str) -> None:
    assert visitor.client.get("/login", params={"then": then}).status_code == 400


def test_a_wrong_method_is_told_the_right_ones(visitor: Visitor) -> None:
    answer = visitor.client.delete("/cart")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS", "POST"}


def test_a_body_too_large_is_refused(visitor: Visitor) -> None:
    assert visitor.post("/cart", sku="x" * 70_000).status_code == 413


def test_a_replica_that_read_an_older_catalogue_says_so(tmp_path: Path) -> None:
    file = tmp_path / "catalogue.json"
    file.write_text(CATALOGUE.read_text("utf-8"), "utf-8")
    app = create_app({"CATALOGUE": file})
    products = json.loads(file.read_text("utf-8"))
    products[0]["cents"] += 100
    file.write_text(json.dumps(products), "utf-8")
    with served(Balancer([app])) as url:
        answer = httpx.get(f"{url}/health/ready", timeout=LIMIT)
        detail = httpx.get(f"{url}/health/detailed", timeout=LIMIT).json()
    assert answer.status_code == 503
    assert detail["checks"]["catalogue"]["status"] == "unhealthy"
