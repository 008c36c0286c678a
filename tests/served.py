"""A service over real HTTP, in a thread of this process; and a small recommender to serve."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import uvicorn
from flax import nnx

from experiments.semantic_ids.desk import Desk, Limits, Service
from experiments.semantic_ids.recommending import recommend
from experiments.semantic_ids.serving import make_app
from experiments.semantic_ids.trained import Recommender
from recipe_jax.functional import purify
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.generative_recommender import (
    GenerativeRecommender,
    GenerativeRecommenderConfig,
)
from recipe_jax.semantic_ids import make_semantic_ids

ITEMS = tuple(f"item {row}" for row in range(40))
MAX_ITEMS = 12
"""Of a history that the model reads."""


def make_recommender() -> Recommender:
    """A model of random parameters."""
    codes = np.arange(len(ITEMS))[:, None] % 12
    ids = make_semantic_ids(ITEMS, codes, num_codes=(12,), num_digits=4)
    cfg = GenerativeRecommenderConfig(
        sizes=ids.sizes,
        transformer=TransformerConfig(num_layers=1, embed_dim=16, num_heads=2),
        encoder_layers=1,
        max_items=MAX_ITEMS,
    )
    fn, params = purify(GenerativeRecommender(cfg, rngs=nnx.Rngs(0)))
    seen = np.zeros(len(ITEMS), bool)
    return Recommender("generative_recommender", fn, params, ITEMS, ids, False, seen)


def make_service(recommender: Recommender) -> Service:
    return Service(len(ITEMS), lambda history, k: recommend(recommender, history, k=k))


@contextlib.contextmanager
def served(service: Service, limits: Limits, *, page: bool = False) -> Iterator[str]:
    """The address of a server that ends with the context."""
    desk = Desk(service, limits)
    app = make_app(desk)
    if page:
        from experiments.semantic_ids.page import add_page  # takes seconds to import

        add_page(app, desk)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started and thread.is_alive():
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
            desk.close()
