"""Answer `POST /recommend` on this machine, and show a page that asks it.

python -m experiments.semantic_ids serve --run runs/generative --port 7860

A language model of `tune` answers sentences, too; beside any other model a catalogue does, by the
words and the vectors of its texts.  All programs are compiled before the first request is heard.
Nobody else's machine can ask: an address that others reach is refused.  SIGINT or SIGTERM ends it;
the last line on stdout is one JSON object.
"""

import contextlib
import dataclasses
import importlib.util
import ipaddress
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.commands import check_least
from experiments.semantic_ids.catalogue_vectors import read_items
from experiments.semantic_ids.questions import knows_questions
from experiments.semantic_ids.recommending import recommend, warm_up
from experiments.semantic_ids.retrieval import make_retriever
from experiments.semantic_ids.trained import load_recommender

if TYPE_CHECKING:
    from experiments.semantic_ids.desk import Desk, Limits, Service

DEFAULT_HOST = "127.0.0.1"

_COMPILING = "compiling what requests need …"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Which model answers, and where.

    Attributes:
        run: the run folder of `train` or `tune`, or its model folder.
        catalogue: beauty or recipes, or a table of one's own, .jsonl or .parquet: the items that
            sentences find, where the model reads none.
        id_field: of a table of one's own: what tells items apart.
        text_fields: of a table of one's own: what is known of an item in words.
        host: an address of this machine that no other reaches, such as 127.0.0.1 or ::1.
        port: 0 for any that is free; the address is printed.
        page: show a page at `/`, too.
        max_k: most items that a request may ask for.
        max_history_items: longest history, of which the model reads the latest items.
        max_at_once: requests that are computed at the same time.
        max_waiting: requests that are being answered or wait for it; others are sent away.
        seconds: in which an answer must be there.
    """

    run: Path
    catalogue: str | None = None
    id_field: str = "id"
    text_fields: tuple[str, ...] = ("title",)
    host: str = DEFAULT_HOST
    port: int = 7860
    page: bool = True
    max_k: int = 100
    max_history_items: int = 256
    max_at_once: int = 2
    max_waiting: int = 64
    seconds: float = 10.0

    def __post_init__(self) -> None:
        check_least(self, max_k=1, max_history_items=1)
        check_least(self, max_at_once=1, max_waiting=1)
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"--seconds {self.seconds} must be above 0 and finite")
        if not 0 <= self.port < 65_536:
            raise ValueError(f"--port {self.port} must be from 0 to 65535")
        if self.host != "localhost" and not _is_loopback(self.host):
            raise ValueError(
                f"--host {self.host} must be a loopback address, such as {DEFAULT_HOST}: the "
                "server knows no users and no passwords, and is for this machine alone"
            )


class _StoppedError(Exception):
    """SIGINT or SIGTERM arrived."""


def run(flags: Flags) -> dict[str, Any]:
    """Serve until a signal comes; returns how many requests were answered."""
    _check_installed("fastapi", "uvicorn", *(["gradio"] if flags.page else []))
    from experiments.semantic_ids.desk import Desk, Limits

    limits = Limits(
        max_k=flags.max_k,
        max_history_items=flags.max_history_items,
        max_at_once=flags.max_at_once,
        max_waiting=flags.max_waiting,
        seconds=flags.seconds,
    )
    desk = None
    with contextlib.suppress(_StoppedError), _stopping(), _bound(flags) as listener:
        desk = Desk(load_service(flags, limits), limits)
        _serve(desk, flags, listener)
    return {"answered": 0 if desk is None else desk.num_answered}


def load_service(flags: Flags, limits: "Limits") -> "Service":
    """A trained model with all that it needs compiled.

    Raises:
        ModelFolderError: no model there.
        DataError: a catalogue that breaks a rule.
        ValueError: a catalogue beside a model that reads sentences itself, or one that no sentence
            can find anything in.
    """
    from experiments.semantic_ids.desk import Service

    if knows_questions(flags.run):
        if flags.catalogue is not None:
            raise ValueError(f"--catalogue is for models that read no sentences; {flags.run} does")
        return _language_service(flags.run, limits)
    recommender = load_recommender(flags.run)
    by_query = None
    if flags.catalogue is not None:
        items = read_items(flags.catalogue, id_field=flags.id_field, text_fields=flags.text_fields)
        retriever = make_retriever(items, recommender.ids)
        by_query = lambda query, k: retriever.search(query, k=k)  # noqa: E731
    print(_COMPILING, file=sys.stderr)
    warm_up(recommender, max_history_items=limits.max_history_items, max_k=limits.max_k)
    return Service(
        num_items=len(recommender.item_ids),
        by_history=lambda history, k: recommend(recommender, history, k=k),
        by_query=by_query,
    )


def _language_service(run: Path, limits: "Limits") -> "Service":
    # Needs the extra [language], which the others do not.
    from experiments.semantic_ids import language_recommending as language
    from experiments.semantic_ids.desk import Service

    model = language.load_language_recommender(run)
    print(_COMPILING, file=sys.stderr)
    language.warm_up_language(model, max_history_items=limits.max_history_items, max_k=limits.max_k)
    by_history = lambda history, k: language.recommend_for_history(model, history, k=k)  # noqa: E731
    return Service(
        num_items=model.ids.num_items,
        by_history=by_history if model.questions.history_query else None,
        by_query=lambda query, k: language.recommend_for_query(model, query, k=k),
    )


def _serve(desk: "Desk", flags: Flags, listener: socket.socket) -> None:
    import uvicorn

    from experiments.semantic_ids.serving import make_app

    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    app = make_app(desk, hosts=sorted({shown, "localhost", DEFAULT_HOST}))
    if flags.page:
        from experiments.semantic_ids.page import add_page

        add_page(app, desk)
    listener.listen()
    print(f"http://{shown}:{port}", file=sys.stderr, flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=round(flags.seconds)
    )
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        desk.close()


def _check_installed(*packages: str) -> None:
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise ValueError(f"{name} is not installed: pip install 'recipe-jax[serve]'")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _bound(flags: Flags) -> Iterator[socket.socket]:
    """The address is taken before the model is read: one that is in use is told at once."""
    host = DEFAULT_HOST if flags.host == "localhost" else flags.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, flags.port))
        except OSError as error:
            raise OSError(
                f"{host}:{flags.port} cannot be listened on ({error.strerror})"
            ) from error
        yield listener


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """A signal raises `_StoppedError`; uvicorn ends by itself first, and then sends it again."""

    def stop(*_: object) -> None:
        raise _StoppedError

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
