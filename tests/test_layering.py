"""Imports point one way: each part of the library may import only what the design lists."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ALLOWED = {
    "functional": set(),
    "sharding": set(),
    "batches": set(),
    "metrics": set(),
    "semantic_ids": set(),
    "prefix_index": {"semantic_ids"},
    "reserved_places": set(),
    "plots": set(),
    "transformer_plots": {"plots"},
    "quantizer_plots": {"plots"},
    "diets": set(),
    "describe": {"functional"},
    "marked_values": set(),
    "activations": {"functional", "marked_values"},
    "layers": {"functional"},
    "models": {"layers", "batches", "functional"},
    "data": {"batches"},
    "training": {"functional", "sharding"},
    "decoding": {"models", "layers", "batches", "functional", "prefix_index"},
    "explain": {"models", "layers", "batches", "functional"},
    "huggingface": {"models", "layers", "batches", "functional", "sharding"},
    "sentence_encoding": {"huggingface", "models", "functional", "sharding"},
    "quantizers": {"models", "layers", "batches", "functional", "training", "huggingface"},
}
"""Part -> the other parts of recipe_jax that it may import."""

ACCELERATOR = {
    "activations",
    "batches",
    "functional",
    "layers",
    "marked_values",
    "models",
    "sharding",
    "training",
}
ON_ACCELERATORS = {"jax", "flax", "optax", "orbax", "numpy", "jaxtyping"}
"""What those parts may import beside the standard library, to run on a bare accelerator machine."""

DECODING = {
    "beam_search",
    "integrated_gradients",
    "item_beam_search",
    "item_scores",
    "joint_decoding",
    "mask_predict",
    "set_likelihood",
    "set_probabilities",
    "token_beam_search",
    "token_decoding",
}
"""Modules of decoding and explaining that stand in files of their own."""


def part_of(path: Path) -> str:
    name = path.relative_to(ROOT / "recipe_jax").parts[0].removesuffix(".py")
    return name


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "recipe_jax":
                yield from ((node.lineno, f"recipe_jax.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, node.module


SOURCES = sorted((ROOT / "recipe_jax").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    part = part_of(path)
    if part == "__init__":
        return
    allowed = ALLOWED["decoding"] | DECODING | {"decoding"} if part in DECODING else ALLOWED[part]
    if part in ("decoding", "explain"):
        allowed = allowed | DECODING
    for line, module in imports(path):
        if module.startswith("recipe_jax."):
            other = module.split(".")[1]
            assert other == part or other in allowed, f"{path}:{line} imports {module}"
        assert not module.startswith(("experiments", "benchmarks", "recipe_kernels")), module


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_accelerator_parts_import_only_what_a_bare_machine_has(path: Path):
    import sys

    if part_of(path) not in ACCELERATOR:
        return
    extra = {"rich"} if part_of(path) == "training" else set()  # the progress bar
    for line, module in imports(path):
        top = module.split(".")[0]
        standard = top in sys.stdlib_module_names
        known = ON_ACCELERATORS | extra | {"recipe_jax"}
        assert standard or top in known, f"{path}:{line} imports {module}"


KERNELS = sorted((ROOT / "kernels").rglob("*.py"))


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: str(path.relative_to(ROOT)))
def test_kernels_import_layers_and_sharding_alone(path: Path):
    import sys

    # Only `triton_bridge` and the kernels themselves, imported when a program for CUDA is lowered.
    here = ON_ACCELERATORS | ({"triton"} if path.name.startswith("triton_") else set())
    for line, module in imports(path):
        top, _, rest = module.partition(".")
        if top == "recipe_jax":
            assert rest.split(".")[0] in ("layers", "sharding"), f"{path}:{line} imports {module}"
        else:
            known = top in sys.stdlib_module_names or top in here | {"recipe_kernels"}
            assert known, f"{path}:{line} imports {module}"


def test_only_functional_splits_and_merges_modules():
    for path in SOURCES:
        if part_of(path) == "functional":
            continue
        text = path.read_text()
        assert "nnx.split(" not in text and "nnx.merge(" not in text, path


def test_only_sharding_imports_jax_sharding():
    for path in SOURCES:
        if part_of(path) == "sharding":
            continue
        found = [module for _, module in imports(path) if module.startswith("jax.sharding")]
        assert not found, path


def test_no_pickles_anywhere():
    for folder in ("recipe_jax", "experiments", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert "import pickle" not in text and "allow_pickle=True" not in text, path
