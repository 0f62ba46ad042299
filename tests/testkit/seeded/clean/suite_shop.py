import pytest
from shop import create_app, database


@pytest.fixture
def app(tmp_path):
    (tmp_path / "uploads").mkdir()
    app = create_app(
        {"DATABASE": str(tmp_path / "db"), "UPLOADS": str(tmp_path / "uploads"), "TESTING": True}
    )
    with app.app_context():
        database.create()
    return app


@pytest.fixture
def client(app):
    return app.test_client()


def test_a_page(client):
    assert client.get("/page/terms").data == b"No refunds"


def test_no_page(client):
    assert client.get("/page/none").status_code == 404


def test_a_wrong_password(client):
    assert client.post("/login", data={"name": "ann", "password": "y"}).status_code == 401


def test_the_cart_is_remembered(client):
    client.post("/login", data={"name": "ann", "password": "x"})
    client.post("/cart", data={"item": "tea"})
    client.post("/cart", data={"item": "milk"})
    assert client.get("/cart").json == ["tea", "milk"]


def test_a_picture(client):
    client.put("/picture/a.png", data=b"png")
    for _ in range(3):
        assert client.get("/picture/a.png").data == b"png"
