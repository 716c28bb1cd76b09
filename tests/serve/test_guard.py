"""Who is let in: names, origins, keys."""

from __future__ import annotations

import base64

import httpx
import openai
import pytest

from cutaway.errors import CutawayError
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
    with server(Policy(origins=frozenset({page}), api_keys=("key",))) as url:
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
    with server(Policy(api_keys=("schlüssel",))) as url:
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


def test_clients_with_different_keys_share_nothing_that_is_kept():
    """Not the pages of a text that both ask about, nor a response that one asked to be kept."""
    text = "what stands at the beginning of every request of theirs, longer than a page " * 2
    with server(Policy(api_keys=("one", "two"))) as url:
        a, b = (openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for key in ("one", "two"))
        asked = {"model": "tiny", "input": text, "max_output_tokens": 16}
        cached = [client.responses.create(**asked).usage.input_tokens_details.cached_tokens for client in (a, a, b, b)]
        assert cached[0] == cached[2] == 0 < cached[1] == cached[3]
        kept = a.responses.create(**asked, store=True).id
        assert a.responses.retrieve(kept).id == kept
        with pytest.raises(openai.NotFoundError):
            b.responses.retrieve(kept)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="three", max_retries=0).models.list()
    for blank in ("", " "):
        with pytest.raises(CutawayError, match="api-key"):
            Policy(api_keys=("one", blank))


def test_a_reply_may_take_so_long():
    asked = {"model": "tiny", "prompt": "x", "max_tokens": 200, "ignore_eos": True}
    with server(Policy(timeout=0.02)) as url:
        answer = httpx.post(f"{url}/v1/completions", json=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        streamed = httpx.post(f"{url}/v1/completions", json=asked | {"stream": True}).text
        assert '"code":"timeout"' in streamed
        assert "[DONE]" not in streamed
    with server(Policy(timeout=60)) as url:
        assert httpx.post(f"{url}/v1/completions", json=asked).status_code == 200


def test_nothing_of_a_refused_request_is_read():
    with server(Policy(api_keys=("key",))) as url:
        answer = httpx.post(f"{url}/v1/chat/completions", content=b"{", headers={"Content-Type": "application/json"})
        assert answer.status_code == 401


def test_the_description_is_there_and_complete():
    paths = create_app({}).openapi()["paths"]
    assert {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/health"} <= set(paths)
