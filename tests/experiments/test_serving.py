"""`POST /recommend` over real HTTP: right answers, and one line for every request without one."""

import concurrent.futures
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor
from typing import Any

import httpx
import jax
import numpy as np
import pytest
from flax import nnx
from served import ITEMS, MAX_ITEMS, make_recommender, make_service, served

from experiments.semantic_ids import recommending
from experiments.semantic_ids.desk import Limits, Service
from experiments.semantic_ids.recommending import (
    Recommendation,
    Recommendations,
    recommend,
    warm_up,
)
from experiments.semantic_ids.trained import Recommender
from recipe_jax.data.interactions import histories_of
from recipe_jax.functional import purify
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.sasrec import Sasrec, SasrecConfig
from recipe_jax.semantic_ids import parse_id

LIMITS = Limits(max_body_bytes=4096, max_characters=80, max_history_items=20, max_k=30)
COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module")
def recommender() -> Iterator[Recommender]:
    """Histories are padded to 4 items or to the longest, so that there is more than one way."""
    found = make_recommender()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recommending, "ROOMS", (4,))
        warm_up(found, max_history_items=LIMITS.max_history_items, max_k=LIMITS.max_k)
        yield found


@pytest.fixture(scope="module")
def client(recommender: Recommender) -> Iterator[httpx.Client]:
    service = make_service(recommender)
    with served(service, LIMITS) as url, httpx.Client(base_url=url) as client:
        yield client


@contextlib.contextmanager
def asking(service: Service, **limits: Any) -> Iterator[httpx.Client]:
    with served(service, Limits(**limits)) as url, httpx.Client(base_url=url) as client:
        yield client


def nothing(*_: object) -> Recommendations:
    return Recommendations((), 0, 0.0)


def line_of(answer: httpx.Response, status: int) -> str:
    """The one line of a refusal."""
    assert answer.status_code == status, answer.text
    said = answer.json()
    assert list(said) == ["detail"] and isinstance(said["detail"], str)
    assert said["detail"] and said["detail"].isprintable()
    assert len(said["detail"]) < 200 and "Traceback" not in said["detail"]
    return said["detail"]


def same(answer: httpx.Response, found: Recommendations) -> bool:
    assert answer.status_code == 200, answer.text
    rows = answer.json()["items"]
    assert [row["item"] for row in rows] == [row.item for row in found.items]
    assert [row["score"] for row in rows] == pytest.approx([row.score for row in found.items])
    return True


def test_the_answer_is_that_of_the_model(client: httpx.Client, recommender: Recommender):
    history = list(ITEMS[3:8])
    answer = client.post("/recommend", json={"history": history, "k": 25})
    assert same(answer, recommend(recommender, history, k=25))
    said = answer.json()
    assert len({row["item"] for row in said["items"]}) == 25
    assert not {row["item"] for row in said["items"]} & set(history)
    for row in said["items"]:
        codes = recommender.ids.codes[ITEMS.index(row["item"])].tolist()
        assert row["codes"] == codes == list(parse_id(row["semantic_id"], recommender.ids.sizes))
    assert said["num_read"] == 5 and said["milliseconds"] > 0 <= said["waited_milliseconds"]
    assert len(client.post("/recommend", json={"history": history}).json()["items"]) == 10


def test_many_clients_at_once_get_their_own_answers(client: httpx.Client, recommender: Recommender):
    rng = np.random.default_rng(0)
    asked = [
        {"history": rng.choice(ITEMS, rng.integers(1, 15)).tolist(), "k": int(rng.integers(1, 24))}
        for _ in range(64)
    ]
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda body: client.post("/recommend", json=body), asked))
    for body, answer in zip(asked, answers, strict=True):
        assert same(answer, recommend(recommender, body["history"], k=body["k"]))
    assert len({answer.text for answer in answers}) > 32


def test_no_request_waits_for_a_compilation(client: httpx.Client):
    compiled: list[str] = []

    def listen(event: str, _: float, **__: object) -> None:
        if event == COMPILED:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for length in range(1, LIMITS.max_history_items + 1):
            for k in (1, 20, 21, LIMITS.max_k):
                history = [ITEMS[place % 10] for place in range(length)]
                answer = client.post("/recommend", json={"history": history, "k": k})
                assert answer.status_code == 200
        assert not compiled
        jax.jit(lambda x: x + 1)(np.zeros(7))  # what is listened for is heard
        assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_repeated_items_and_long_histories_are_read(client: httpx.Client, recommender: Recommender):
    twice = [ITEMS[1], ITEMS[1], ITEMS[2], ITEMS[1]]
    answer = client.post("/recommend", json={"history": twice, "k": 30})
    assert same(answer, recommend(recommender, twice, k=30))
    assert answer.json()["num_read"] == 4
    longer = list(ITEMS[: MAX_ITEMS + 3])
    answer = client.post("/recommend", json={"history": longer})
    assert same(answer, recommend(recommender, longer, k=10))
    assert answer.json()["num_read"] == MAX_ITEMS


def test_a_model_without_ids_is_served_too():
    cfg = SasrecConfig(
        num_items=len(ITEMS),
        transformer=TransformerConfig(num_layers=1, embed_dim=16, num_heads=2),
        max_items=MAX_ITEMS,
    )
    fn, params = purify(Sasrec(cfg, rngs=nnx.Rngs(0)))
    model = Recommender("sasrec", fn, params, ITEMS, None, False, np.zeros(len(ITEMS), bool))
    items = np.array([3, 5, 7])
    scores = model.scorer()(histories_of(["user"], [items], ordered=True))[0]
    scores[items] = -np.inf
    with asking(make_service(model)) as client:
        answer = client.post("/recommend", json={"history": [ITEMS[i] for i in items], "k": 37})
    found = [ITEMS.index(row["item"]) for row in answer.json()["items"]]
    assert sorted(found) == sorted(set(range(40)) - set(items.tolist()))
    np.testing.assert_allclose(scores[found], np.sort(scores)[::-1][:37], rtol=1e-5)
    assert {(row["semantic_id"], *row["codes"]) for row in answer.json()["items"]} == {("",)}


REFUSED = {
    "{}": "history or query must be given, one of them: neither is",
    '{"history": null, "query": null}': "history or query must be given, one of them: neither is",
    '{"history": ["item 1"], "query": "soap"}': "one of them: both are",
    '{"query": "soap"}': "the model reads no query: give a history",
    '{"history": []}': "the history is empty, must name at least one item",
    '{"history": ["item 1", "Item 2"]}': "item 'Item 2' of the history is none of the model's 40",
    '{"history": ["item 1\\n\\u0000\\u202e"]}': r"item 'item 1\n\x00\u202e' of the history is none",
    '{"history": ["caf\\u00e9"]}': "item 'café' of the history",
    '{"history": ["\\ud800"]}': r"item '\ud800' of the history",
    '{"history": [""]}': "item '' of the history",
    '{"history": "item 1"}': 'history="item 1" must be a list of names',
    '{"history": {"0": "item 1"}}': 'history={"0": "item 1"} must be a list of names',
    '{"history": ["item 1", 2]}': "history[1]=2 must be text",
    '{"history": ["item 1", null]}': "history[1]=null must be text",
    '{"query": 3}': "query=3 must be text",
    '{"history": ["item 1"], "k": 0}': "k=0 must be from 1 to 30",
    '{"history": ["item 1"], "k": -1}': "k=-1 must be from 1 to 30",
    '{"history": ["item 1"], "k": 31}': "k=31 must be from 1 to 30",
    '{"history": ["item 1"], "k": 1e400}': "k=Infinity must be a whole number",
    '{"history": ["item 1"], "k": NaN}': "k=NaN must be a whole number",
    '{"history": ["item 1"], "k": true}': "k=true must be a whole number",
    '{"history": ["item 1"], "k": "10"}': 'k="10" must be a whole number',
    '{"history": ["item 1"], "k": 1.5}': "k=1.5 must be a whole number",
    '{"history": ["item 1"], "k": null}': "k=null must be a whole number",
    '{"history": ["item 1"], "K": 3}': '"K" is no field of a request: those are history, query',
    '{"history": ["item 1"]': "the request body is not JSON: Expecting ',' delimiter at character",
    "": "the request has no body",
    "null": "the request body must be an object of JSON with history or query",
    '["item 1"]': "the request body must be an object of JSON with history or query",
    "[" * 4000: "the request body cannot be read as JSON (RecursionError)",
    '{"history": ["item 1"], "k": ' + "1" * 4000 + "}": "must be from 1 to 30",
    json.dumps({"history": ["x" * 81]}): "has 81 characters, must have at most 80",
    json.dumps({"history": ["item 1"] * 21}): "history has 21 items, must have at most 20",
}


@pytest.mark.parametrize("body", REFUSED, ids=lambda body: body[:40])
def test_a_request_without_an_answer_is_refused_in_one_line(client: httpx.Client, body: str):
    headers = {"content-type": "application/json"}
    answer = client.post("/recommend", content=body, headers=headers)
    assert REFUSED[body] in line_of(answer, 422)


def test_no_more_items_than_there_are(recommender: Recommender):
    with asking(make_service(recommender), max_k=100) as client:
        answer = client.post("/recommend", json={"history": list(ITEMS[:2]), "k": 39})
        line = "k=39 must be from 1 to 38: there are 40 items, 2 of them in the history"
        assert line_of(answer, 422) == line
        answer = client.post("/recommend", json={"history": list(ITEMS[:2]), "k": 38})
        assert {row["item"] for row in answer.json()["items"]} == set(ITEMS[2:])


def test_a_body_that_is_no_json_is_refused(client: httpx.Client):
    body = json.dumps({"history": ["item 1"]})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = client.post("/recommend", content=body, headers={"content-type": kind})
        assert "its content-type application/json" in line_of(answer, 422)
    json_type = {"content-type": "application/json"}
    answer = client.post("/recommend", content=b'{"history": ["\xff"]}', headers=json_type)
    line = "the request body cannot be read as JSON (UnicodeDecodeError)"
    assert line_of(answer, 422) == line


@pytest.mark.parametrize("chunked", [False, True], ids=["with its length", "in chunks"])
def test_a_body_that_is_too_large_is_refused(client: httpx.Client, chunked: bool):
    headers = {"content-type": "application/json"}
    line = "the request body has more than the 4096 bytes that it may have"
    fits = json.dumps({"history": ["item 1"]}).ljust(4096).encode()
    many = json.dumps({"history": ["item 1"] * 1_000_000}).encode()[:900_000]
    for body, status in ((fits, 200), (fits + b" ", 413), (many, 413)):
        parts = (body[at : at + 1000] for at in range(0, len(body), 1000)) if chunked else body
        answer = client.post("/recommend", content=parts, headers=headers)
        assert answer.status_code == 200 if status == 200 else line_of(answer, 413) == line
    # Everywhere: what is behind the page reads bodies, too.
    assert line_of(client.post("/health", content=b"0" * 5000), 413) == line


def say(client: httpx.Client, text: str) -> str:
    """What the server says to bytes of ours, until it closes the connection."""
    with socket.create_connection((client.base_url.host, client.base_url.port)) as raw:
        raw.settimeout(20)
        raw.sendall(text.replace("\n", "\r\n").encode())
        return b"".join(iter(lambda: raw.recv(65_536), b"")).decode()


def test_a_client_that_asks_first_is_told_before_it_sends(client: httpx.Client):
    head = "POST /recommend HTTP/1.1\nHost: localhost\nContent-Length: 9000000\n"
    answer = say(client, head + "Expect: 100-continue\n\n")
    assert answer.startswith("HTTP/1.1 413") and "100 Continue" not in answer


def test_a_body_that_does_not_come_is_not_waited_for():
    with asking(Service(1, nothing), seconds=0.2) as client:
        head = "POST /recommend HTTP/1.1\nHost: localhost\nContent-Length: 9\n\n{"
        answer = say(client, head)
        assert answer.startswith("HTTP/1.1 408")
        assert "the request body must arrive within 0.2 seconds" in answer
        assert client.get("/health").status_code == 200


def test_requests_beyond_those_that_may_wait_are_sent_away():
    begun, go_on = threading.Semaphore(0), threading.Event()

    def wait(*_: object) -> Recommendations:
        begun.release()
        assert go_on.wait(20)
        return nothing()

    body = {"history": ["x"]}
    one = asking(Service(1, wait), max_at_once=1, max_waiting=2)
    with one as client, ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(client.post, "/recommend", json=body, timeout=30) for _ in range(3)]
        (refused,), waiting = concurrent.futures.wait(asked, return_when=FIRST_COMPLETED)
        answer = refused.result()
        assert line_of(answer, 503) == "2 requests are waiting: ask again later"
        assert int(answer.headers["retry-after"]) >= 1
        assert begun.acquire(timeout=20) and not begun.acquire(blocking=False)  # one at a time
        go_on.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
        assert client.post("/recommend", json=body).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up():
    go_on = threading.Event()

    def wait(history: Any, _: int) -> Recommendations:
        assert history == ["quick"] or go_on.wait(20)
        return nothing()

    with asking(Service(1, wait), seconds=0.3) as client:
        answer = client.post("/recommend", json={"history": ["slow"]})
        assert line_of(answer, 503) == "no answer within 0.3 seconds: ask again later"
        go_on.set()
        assert client.post("/recommend", json={"history": ["quick"]}).status_code == 200


def test_a_fault_of_the_server_says_nothing_of_its_inside():
    def fail(history: Any, _: int) -> Recommendations:
        if history == ["raise"]:
            raise RuntimeError("secret")
        return Recommendations((Recommendation("a", "", float("nan")),), 1, 0.0)

    with asking(Service(1, fail)) as client:
        for name in ("raise", "not a number"):
            answer = client.post("/recommend", json={"history": [name]})
            assert line_of(answer, 500) == "the server failed: its log says why"
            assert answer.headers["connection"] == "close"
        assert client.get("/health").json() == {"num_items": 1, "reads": ["history"]}


def test_a_query_is_answered_by_what_reads_queries():
    def by_query(query: str, k: int) -> Recommendations:
        rows = (Recommendation(query, "", 0.5),) * k
        return Recommendations(rows, 0, 1.0)

    with asking(Service(3, by_query=by_query), max_characters=20) as client:
        answer = client.post("/recommend", json={"query": "sopa de peixe", "k": 2})
        row = {"item": "sopa de peixe", "semantic_id": "", "codes": [], "score": 0.5}
        assert answer.json()["items"] == [row, row]
        assert client.get("/health").json() == {"num_items": 3, "reads": ["query"]}
        line = line_of(client.post("/recommend", json={"history": ["x"]}), 422)
        assert line == "the model reads no history: give a query"
        line = line_of(client.post("/recommend", json={"query": " \t"}), 422)
        assert line == r'query=" \t" must hold a word'
        line = line_of(client.post("/recommend", json={"query": "x" * 21}), 422)
        assert line.endswith("has 21 characters, must have at most 20")


def test_the_api_describes_itself(client: httpx.Client):
    said = client.get("/openapi.json").json()
    operation = said["paths"]["/recommend"]["post"]
    assert set(operation["responses"]) == {"200", "408", "413", "422", "500", "503"}
    assert "Retry-After" in operation["responses"]["503"]["headers"]
    kinds = said["components"]["schemas"]
    assert set(kinds) == {"Ask", "Answer", "Item", "Refusal", "Health"}
    asked = kinds["Ask"]["properties"]
    assert (asked["k"]["minimum"], asked["k"]["maximum"], asked["k"]["default"]) == (1, 30, 10)
    assert asked["history"]["anyOf"][0]["maxItems"] == 20
    assert asked["query"]["anyOf"][0]["maxLength"] == 80
    assert kinds["Ask"]["additionalProperties"] is False
    answer = client.post("/recommend", json={"history": [ITEMS[0]]}).json()
    assert set(answer) == set(kinds["Answer"]["required"])
    assert set(answer["items"][0]) == set(kinds["Item"]["required"])


def test_other_addresses_and_other_hosts_are_refused(client: httpx.Client):
    assert client.get("/docs").status_code == 404  # it would fetch scripts from elsewhere
    line_of(client.get("/recommend"), 405)
    line_of(client.get("/nowhere"), 404)
    for host in ("recommend.example", "127.0.0.1.example", "10.0.0.1:80"):
        answer = client.get("/health", headers={"host": host})
        assert answer.status_code == 400 and "num_items" not in answer.text
    assert client.get("/health", headers={"host": "localhost:1"}).status_code == 200


def test_limits_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="max_k=0 must be at least 1"):
        Limits(max_k=0)
    with pytest.raises(ValueError, match="seconds=nan must be above 0"):
        Limits(seconds=float("nan"))
    with pytest.raises(ValueError, match=r"seconds=0\.0 must be above 0"):
        Limits(seconds=0.0)
