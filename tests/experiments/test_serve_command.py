"""The command `serve`: it answers until it is told to end, and refuses what it cannot do."""

import contextlib
import importlib.util
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from command_line import refused as refused_of
from served import ITEMS, make_recommender

from experiments.semantic_ids.__main__ import main
from experiments.semantic_ids.desk import Limits
from experiments.semantic_ids.serve import Flags, load_service
from experiments.semantic_ids.trained import save_recommender
from recipe_jax.semantic_ids import ids_as_bytes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as `train` leaves it."""
    folder, found = tmp_path_factory.mktemp("run"), make_recommender()
    save_recommender(
        folder / "model",
        cfg=found.fn.bind(found.params).cfg,
        params=found.params,
        dataset=SimpleNamespace(item_ids=ITEMS),
        learned_validation=False,
        card="# A model",
        files={"ids.npz": ids_as_bytes(found.ids)},
    )
    return folder


@contextlib.contextmanager
def serving(run: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    few = ["--port", "0", "--max-k", "5", "--max-history-items", "8", "--no-page", *flags]
    command = [sys.executable, "-m", "experiments.semantic_ids", "serve", "--run", str(run), *few]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    server = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    try:
        yield server
    finally:
        server.kill()
        server.communicate()


def ended(server: subprocess.Popen[str], number: signal.Signals) -> dict[str, object]:
    """What a server says when a signal ends it."""
    server.send_signal(number)
    said, errors = server.communicate(timeout=60)
    assert server.returncode == 0 and "Traceback" not in errors, errors
    return json.loads(said.splitlines()[-1])


def test_it_answers_until_it_is_told_to_end(run: Path):
    with serving(run) as server:
        assert "compiling" in server.stderr.readline()
        address = server.stderr.readline().strip()
        assert address.startswith("http://127.0.0.1:")
        history = list(ITEMS[:3])
        answer = httpx.post(f"{address}/recommend", json={"history": history, "k": 5})
        found = {row["item"] for row in answer.json()["items"]}
        assert len(found) == 5 and found < set(ITEMS) - set(history)
        assert httpx.post(f"{address}/recommend", json={"history": history * 3}).status_code == 422
        assert httpx.post(f"{address}/recommend", json={"history": ["x"]}).status_code == 422
        assert httpx.get(address).status_code == 404  # no page
        assert ended(server, signal.SIGTERM) == {"answered": 1}


def test_beside_a_model_of_histories_a_catalogue_answers_sentences(run: Path, tmp_path: Path):
    shop = tmp_path / "shop.jsonl"
    rows = [{"id": item, "title": f"soap number{row % 7} {item}"} for row, item in enumerate(ITEMS)]
    shop.write_text("\n".join(map(json.dumps, rows)))
    service = load_service(Flags(run=run, catalogue=str(shop)), Limits(max_k=5))
    assert service.by_query is not None
    found = service.by_query("number3", 5).items
    assert {int(row.item.split()[1]) % 7 for row in found} == {3}
    assert all(row.semantic_id for row in found)
    with pytest.raises(ValueError, match="no item has any word of the query"):
        service.by_query("zebra", 5)


def test_it_can_be_told_to_end_while_it_compiles(run: Path):
    with serving(run) as server:
        assert "compiling" in server.stderr.readline()
        assert ended(server, signal.SIGINT) == {"answered": 0}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    return refused_of(capsys, "serve", *arguments, main=main)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.com", "127.0.0.1.example.com"]
)
def test_addresses_that_others_reach_are_refused(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    line = refused(capsys, "--run", tmp_path, "--host", host)  # where nothing could be served
    assert f"--host {host} must be a loopback address, such as 127.0.0.1" in line


def test_what_it_cannot_do_is_refused(
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    assert "--port 65536 must be from 0 to 65535" in refused(
        capsys, "--run", run, "--port", "65536"
    )
    assert "--seconds 0.0 must be above 0" in refused(capsys, "--run", run, "--seconds", "0")
    assert "--max-k 0 must be at least 1" in refused(capsys, "--run", run, "--max-k", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = refused(capsys, "--run", run, "--port", str(port))
        assert line == f"serve: 127.0.0.1:{port} cannot be listened on (Address already in use)"
    assert "model" in refused(capsys, "--run", tmp_path, "--port", "0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    line = refused(capsys, "--run", run)
    assert line == "serve: fastapi is not installed: pip install 'recipe-jax[serve]'"


def test_other_commands_import_nothing_of_a_server():
    program = (
        "import sys; from experiments.semantic_ids import __main__, evaluate, recommend, serve; "
        "print({'fastapi', 'gradio', 'pydantic', 'uvicorn'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
