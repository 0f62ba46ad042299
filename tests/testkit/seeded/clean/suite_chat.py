import pytest
from chat.web import app
from starlette.testclient import TestClient


@pytest.fixture(autouse=True)
def database(tmp_path, monkeypatch):
    monkeypatch.setenv("CHAT_DATABASE", str(tmp_path / "chat"))


def test_all_in_the_room_hear_it():
    with (
        TestClient(app) as client,
        client.websocket_connect("/room") as ann,
        client.websocket_connect("/room") as bob,
    ):
        ann.send_text("hello")
        assert bob.receive_text() == "hello"
