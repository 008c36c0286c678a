"""How long clients wait for recommendations over HTTP.

    RECIPE_JAX_DATA=DIR python -m benchmarks.serving --record benchmarks/records/serving.json

The server is the command `serve` in a process of its own, with an encoder and a decoder of two
layers each, 128 wide, that generate IDs of all 12,101 items of Beauty (4 levels).  How much it has
learned plays no part: it is trained for a few steps, or given by `--run`.  Clients are threads of
this process, each with one connection, that ask for 10 items anew as soon as they are answered, on
the same cores.  Histories are those of random users, all of their items; or of 50 random items,
the most that the model reads.

Goal: with 8 clients 95 % of the answers are there within 100 ms.
"""

import contextlib
import dataclasses
import http.client
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.commands import check_least
from experiments.record import command_line, make_record, write_record
from experiments.semantic_ids.datasets import Dataset, read_dataset

LONGEST = 50
"""Items of a history that the model reads."""

CODES = "--method residual-kmeans --dim 256"
MODEL = (
    "--model generative --embed-dim 128 --num-layers 2 --encoder-layers 2 --num-heads 4 --steps 6 "
    "--learn-validation"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is measured.

    Attributes:
        run: of a trained model; None to train one for a few steps.
        data: what it was trained on: `beauty`, or a file of users.
        clients: that ask at once.
        requests: of each of them, and of one client alone.
        at_once: requests that the server computes at the same time; the first is that of the goal.
        record: write the results to this file.
    """

    run: Path | None = None
    data: str = "beauty"
    clients: int = 8
    requests: int = 100
    at_once: tuple[int, ...] = (2, 1)
    record: Path | None = None

    def __post_init__(self) -> None:
        check_least(self, clients=1, requests=1)
        if not self.at_once or min(self.at_once) < 1:
            raise ValueError(f"--at-once {self.at_once} must be at least 1 each, of one or more")
        if self.run is None and self.data != "beauty":
            raise ValueError(f"--data {self.data} needs --run, a model that was trained on it")


def train(folder: Path) -> Path:
    """A run folder with a model of a few steps."""
    _command("quantize", *CODES.split(), "--run", str(folder / "codes"))
    model, run = MODEL.split(), folder / "run"
    _command("train", *model, "--codes", str(folder / "codes"), "--run", str(run))
    return run


def _command(*words: str) -> None:
    command = [sys.executable, "-m", "experiments.semantic_ids", *words, "--no-progress"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def serving(run: Path, *flags: str) -> Iterator[int]:
    """The port at which a server answers, until the end."""
    command = [sys.executable, "-m", "experiments.semantic_ids", "serve", "--run", str(run)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    server = subprocess.Popen([*command, "--port", "0", *flags], **options)
    assert server.stderr is not None
    try:
        for line in server.stderr:
            print(line, end="", file=sys.stderr)
            if line.startswith("http://"):
                yield int(line.rpartition(":")[2])
                break
        else:
            raise RuntimeError("the server ended before it listened; see above")
    finally:
        server.terminate()
        server.communicate()


def ask(port: int, histories: Sequence[Sequence[str]]) -> list[float]:
    """Milliseconds of each request of one client, one after the other."""
    client, taken = http.client.HTTPConnection("127.0.0.1", port), []
    for history in histories:
        body = json.dumps({"history": list(history), "k": 10})
        started = time.perf_counter()
        client.request("POST", "/recommend", body, {"content-type": "application/json"})
        answer = client.getresponse()
        found = json.loads(answer.read())
        taken.append(1e3 * (time.perf_counter() - started))
        if answer.status != 200 or len({row["item"] for row in found["items"]}) != 10:
            raise RuntimeError(f"the server answered {answer.status}: {found}")
    client.close()
    return taken


def measure(port: int, histories: Sequence[Sequence[str]], *, clients: int) -> dict[str, Any]:
    """All requests, shared out among clients that ask at once."""
    shares = [histories[i::clients] for i in range(clients)]
    taken: list[float] = []
    threads = [
        threading.Thread(target=lambda share=share: taken.extend(ask(port, share)))
        for share in shares
    ]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    if len(taken) < len(histories):
        raise RuntimeError("a client was not answered; see above")
    p50, p95, p99 = np.percentile(taken, [50, 95, 99])
    return {
        "clients": clients,
        "n": len(taken),
        "p50_ms": round(p50, 1),
        "p95_ms": round(p95, 1),
        "p99_ms": round(p99, 1),
        "requests_per_second": round(len(taken) / seconds, 1),
    }


def draw_histories(dataset: Dataset, count: int, *, longest: bool) -> list[list[str]]:
    """Those of random users without their last two items, or each of `LONGEST` random items."""
    draw = random.Random(0)
    if longest:
        return [draw.sample(dataset.item_ids, LONGEST) for _ in range(count)]
    histories = dataset.split.train
    users = [draw.randrange(len(histories.users)) for _ in range(count)]
    return [[dataset.item_ids[item] for item in histories.items_of(user)] for user in users]


def measure_server(flags: Flags, run: Path, dataset: Dataset, at_once: int) -> list[dict[str, Any]]:
    """A row for each kind of history and number of clients."""
    rows = []
    with serving(run, "--max-at-once", str(at_once)) as port:
        for name in ("of users", f"of {LONGEST} items"):
            for clients in (1, flags.clients):
                count, longest = clients * flags.requests, name != "of users"
                histories = draw_histories(dataset, count, longest=longest)
                measure(port, histories[: 3 * clients], clients=clients)
                found = measure(port, histories, clients=clients)
                rows.append({"at_once": at_once, "histories": name, **found})
    return rows


def main() -> None:
    """Measure, print a table, write the record."""
    flags = tyro.cli(Flags, description=__doc__)
    dataset, rows = read_dataset(flags.data), []
    with tempfile.TemporaryDirectory() as folder:
        run = flags.run or train(Path(folder))
        for at_once in flags.at_once:
            rows += measure_server(flags, run, dataset, at_once)
    table = Table("at once", "histories", "clients", "p50, ms", "p95", "p99", "requests a second")
    for row in rows:
        table.add_row(*(str(value) for name, value in row.items() if name != "n"))
    Console(file=sys.stderr).print(table)
    headline = {
        "p95_ms": rows[1]["p95_ms"],
        "one_client_p50_ms": rows[0]["p50_ms"],
        "load_average": round(os.getloadavg()[0], 1),
    }
    if flags.record:
        command = command_line("benchmarks.serving", flags)
        record = make_record(command, **headline, model=MODEL, codes=CODES, rows=rows)
        write_record(flags.record, record)
    print(json.dumps(headline))


if __name__ == "__main__":
    main()
