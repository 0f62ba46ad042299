"""Tests of wrong.py as its author would write them: `pytest sample_apps/flask_shop/suite.py` passes.

`pytest sample_apps/flask_shop/suite.py --replicas 3` says what happens behind a balancer.
"""

from __future__ import annotations

import re

import pytest
from flask.testing import FlaskClient

from sample_apps.flask_shop import wrong


@pytest.fixture
def client() -> FlaskClient:
    app = wrong.create_app()
    app.testing = True
    return app.test_client()


def token(client: FlaskClient) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/login").text)
    assert found is not None
    return found[1]


def test_the_catalogue_is_there(client: FlaskClient) -> None:
    assert "Enamel kettle" in client.get("/").text


def test_a_product_has_a_page(client: FlaskClient) -> None:
    assert client.get("/products/kettle").status_code == 200


def test_what_was_put_into_the_cart_is_in_it(client: FlaskClient) -> None:
    client.post("/cart", data={"csrf_token": token(client), "sku": "kettle"})
    assert "Enamel kettle" in client.get("/cart").text
