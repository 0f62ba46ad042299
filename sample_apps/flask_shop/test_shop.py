"""A small suite of the shop, to run over replicas: `pytest sample_apps/flask_shop/test_shop.py --replicas 3`.

SHOP=wrong in the environment takes the shop of wrong.py in place of the one of app.py.
"""

from __future__ import annotations

import os
import re

import pytest
from flask.testing import FlaskClient

from sample_apps.flask_shop import app, wrong


@pytest.fixture
def client() -> FlaskClient:
    shop = wrong if os.environ.get("SHOP") == "wrong" else app
    return shop.create_app().test_client()


def token(client: FlaskClient) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/products/teapot").text)
    return found[1] if found else ""


def test_the_catalogue_is_there(client: FlaskClient) -> None:
    assert "Three Kettles" in client.get("/").text


def test_what_is_in_the_cart_stays_there(client: FlaskClient) -> None:
    form = {"sku": "teapot", "quantity": "2", "csrf_token": token(client)}
    assert client.post("/cart", data=form).status_code == 303
    assert "2" in client.get("/cart").text


def test_a_login_is_remembered(client: FlaskClient) -> None:
    form = {"name": "demo", "password": "tea-for-three", "csrf_token": token(client)}
    assert client.post("/login", data=form).status_code == 303
    assert "demo" in client.get("/").text
