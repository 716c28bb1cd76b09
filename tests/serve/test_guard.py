"""Who is let in: names, origins, keys."""

from __future__ import annotations

import base64

import httpx
import pytest

from cutaway.serve.app import Policy, create_app, serve_model
from engine.tiny import decoder, tokenizer
from serve.servers import loaded, serving


def server(policy: Policy):
    return serving(serve_model(loaded("tiny", decoder(), tokenizer())), policy=policy)


def get(url: str, path: str = "/v1/models", **headers: str) -> httpx.Response:
    return httpx.get(url + path, headers=headers)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1:80", "[::1]:8000", "LOCALHOST:1"])
def test_names_of_this_machine(url, name):
    assert get(url, Host=name).status_code == 200


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "[", "192.168.0.1"]
)
def test_other_names_are_refused(url, name):
    answer = get(url, Host=name)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "host_not_allowed")
    assert get(url, "/health", Host=name).status_code == 403


def test_names_may_be_added_or_free():
    with server(Policy(hosts=frozenset({"box.lan"}))) as url:
        assert get(url, Host="box.lan:8000").status_code == 200
        assert get(url).status_code == 403
    with server(Policy(hosts=None)) as url:
        assert get(url, Host="any.thing").status_code == 200


def test_other_origins_are_refused(url):
    own = url.removeprefix("http://")
    assert get(url, Origin=url).status_code == 200
    for origin in ("http://evil.example", "null", "http://localhost:1", f"http://{own}.evil.example"):
        answer = get(url, Origin=origin)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in answer.headers


def test_an_origin_may_be_allowed():
    page = "http://localhost:5173"
    with server(Policy(origins=frozenset({page}), api_key="key")) as url:
        answer = get(url, Origin=page, Authorization="Bearer key")
        assert answer.headers["access-control-allow-origin"] == page
        asked = {
            "Origin": page,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization",
        }
        assert httpx.options(f"{url}/v1/chat/completions", headers=asked).status_code == 200
        assert get(url, Origin="http://evil.example", Authorization="Bearer key").status_code == 403
    with server(Policy(origins=frozenset({"*"}))) as url:
        assert get(url, Origin="http://any.example").status_code == 200


def test_keys():
    with server(Policy(api_key="schlüssel")) as url:
        basic = base64.b64encode("me:schlüssel".encode()).decode()
        right = {b"Authorization": "Bearer schlüssel".encode()}
        assert httpx.get(f"{url}/v1/models", headers=right).status_code == 200
        assert get(url, Authorization=f"Basic {basic}").status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={b"x-api-key": "schlüssel".encode()}).status_code == 200
        assert httpx.get(f"{url}/v1/models", headers={b"x-api-key": b"schl"}).status_code == 401
        assert [get(url, path).status_code for path in ("/health", "/ping", "/ready")] == [200, 200, 503]
        wrong = ["", "Bearer", "Bearer schl", "schlüssel", "Basic !", "Basic eA==", "Digest schlüssel"]
        for shown in wrong:
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
                answer = httpx.get(url + path, headers={b"Authorization": shown.encode()})
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), shown
        assert get(url).headers["www-authenticate"].startswith("Basic")


def test_nothing_of_a_refused_request_is_read():
    with server(Policy(api_key="key")) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"})
        assert answer.status_code == 401


def test_the_description_is_there_and_complete():
    paths = create_app({}).openapi()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health"} <= set(paths)
