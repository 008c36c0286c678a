"""Every line of the table of names runs and gives finite numbers."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

README = Path(__file__).parents[2] / "recipe_jax" / "layers" / "README.md"
TEXT = README.read_text()
ROWS = re.findall(r"^\| (.+) \| `([^`|]+)` \|$", TEXT, re.MULTILINE)
ASKED = (
    "MultiHeadAttention",
    "GroupedQueryAttention",
    "ALiBiAttention",
    "RotaryPositionEncoding",
    "PositionalEncoding",
    "TokenEmbedding",
    "LinearLayer",
    "FeedForwardBlock",
    "FeedForwardNN",
    "FeedForwardClassifier",
    "TransformerEncoderLayer",
    "EncoderDecoderTransformer",
)


@pytest.fixture(scope="module")
def namespace() -> dict:
    found: dict = {}
    exec(re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1], found)
    return found


@pytest.mark.parametrize(("name", "line"), ROWS, ids=[name for name, _ in ROWS])
def test_the_line_of_a_name_runs(name, line, namespace):
    result = eval(line, namespace)
    leaves = jax.tree.leaves(result)
    assert leaves and all(jnp.isfinite(leaf).all() for leaf in leaves)


def test_every_name_people_know_is_there():
    names = {part for name, _ in ROWS for part in re.findall(r"`(\w+)", name)}
    assert set(ASKED) <= names and len(ROWS) > 40
