from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from sightline.app.gate import Access, is_loopback
from sightline.app.server import Context, create_app
from sightline.app.sessions import Sessions, same

API = "/api/v1"
TOKEN = "a-long-token"


@pytest.fixture
def guarded(context: Context) -> TestClient:
    """A server that listens to everybody, and so asks for its token."""
    access = replace(context.access, host="0.0.0.0", token=TOKEN, names=("Fox.Example",))
    app = create_app(replace(context, access=access))
    return TestClient(app, base_url="http://192.168.0.9:7860")


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("127.0.0.1:7860", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:7860", True),
        ("192.168.0.9:7860", False),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("127.0.0.1@evil.example", False),
        ("", False),
        ("[", False),
        ("127.0.0.1:7860, evil.example", False),
    ],
)
def test_only_names_of_this_machine_are_answered(
    client: TestClient, host: str, known: bool
) -> None:
    answer = client.get(f"{API}/jobs", headers={"host": host})
    assert answer.status_code == (200 if known else 403)


def test_other_hosts_know_addresses_and_their_own_names() -> None:
    access = Access(host="0.0.0.0", names=("Fox.Example",))
    assert access.knows("192.168.0.9:7860")
    assert access.knows("fox.example")
    assert access.knows("localhost:7860")
    assert not access.knows("evil.example")
    assert [is_loopback(h) for h in ("127.3.2.1", "::1", "10.0.0.1", "x")] == [
        True,
        True,
        False,
        False,
    ]


def test_a_token_is_asked_for(guarded: TestClient) -> None:
    for headers in ({}, {"x-sightline-token": "wrong"}, {"cookie": "sightline_token=wrong"}):
        for path in ("/", f"{API}/health", f"{API}/jobs", "/gradio_api/info"):
            answer = guarded.get(path, headers=headers)
            assert answer.status_code == 401
            assert "asks for its token" in answer.json()["error"]
            assert "set-cookie" not in answer.headers
    assert guarded.get(f"{API}/health", params={"token": TOKEN}).status_code == 401
    assert guarded.get(f"{API}/health", headers={"x-sightline-token": TOKEN}).status_code == 200
    first = guarded.get("/", params={"token": TOKEN}, follow_redirects=False)
    assert (first.status_code, first.headers["location"]) == (303, "/")
    cookie = first.headers["set-cookie"]
    assert cookie.startswith(f"sightline_token={TOKEN}")
    assert {"HttpOnly", "SameSite=strict"} <= set(cookie.split("; "))
    assert guarded.get(f"{API}/health").status_code == 200, "the cookie is kept"


def test_the_page_gives_a_key_and_the_own_address_the_own_one(
    context: Context, visitor: TestClient
) -> None:
    first = visitor.get("/")
    assert "HttpOnly" in first.headers["set-cookie"]
    assert visitor.get(f"{API}/jobs").json() == []
    assert "set-cookie" not in visitor.get("/").headers
    own = context.sessions.key_of(context.sessions.home)
    visitor.get("/", params={"key": own})
    assert visitor.cookies["sightline_key"] == own
    visitor.get("/", params={"key": "0" * 32 + "." + "0" * 64})
    assert visitor.cookies["sightline_key"] == own


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://127.0.0.1:7860"}, 201),
        ({"sec-fetch-site": "same-origin"}, 201),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://["}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({}, 403),
    ],
)
def test_other_sites_pages_change_nothing(
    visitor: TestClient, headers: dict[str, str], status: int
) -> None:
    visitor.get("/")
    answer = visitor.post(f"{API}/jobs", json={"kind": "demo"}, headers=headers)
    assert answer.status_code == status, answer.text
    assert len(visitor.get(f"{API}/jobs").json()) == (status == 201)


def test_sockets_of_other_sites_are_closed(client: TestClient) -> None:
    for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/x", headers=headers):
            pass


@pytest.mark.parametrize("length", ["-1", "1e9", "99999999999999999999", "abc"])
def test_lengths_that_are_none(client: TestClient, length: str) -> None:
    answer = client.post(f"{API}/jobs", content=b"{}", headers={"content-length": length})
    assert answer.status_code == 400


def test_every_answer_keeps_browsers_at_home(client: TestClient) -> None:
    for path in ("/", f"{API}/health", "/nothing"):
        headers = client.get(path).headers
        assert "connect-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "SAMEORIGIN"


def test_keys_are_signed_and_outlive_the_server(context: Context) -> None:
    sessions = context.sessions
    key = sessions.new_key()
    owner = sessions.owner_of(key)
    assert owner is not None
    again = Sessions(context.jobs.own)
    assert again.owner_of(key) == owner
    assert again.home == sessions.home
    forged = ("0" * 32) + key[32:]
    assert [again.owner_of(k) for k in (None, "", forged, key + "0")] == [None] * 4
    assert (context.jobs.own / "secret").stat().st_mode & 0o077 == 0
    assert same("a", "a")
    assert not same(None, "a")
    assert not same("ä", "a")
