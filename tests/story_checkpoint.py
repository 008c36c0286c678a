"""A tiny checkpoint with a tokenizer for English letters, and a text it can learn."""

import struct
from pathlib import Path

from drawn_parameters import draw_parameters

from recipe_jax.huggingface import LanguageModel, save_language_model
from recipe_jax.huggingface.tokenizers import load_llama2c_tokenizer, tokenizer_files
from recipe_jax.layers.positions import Rope
from recipe_jax.layers.transformer import TransformerConfig
from recipe_jax.models.causal_language_model import CausalLanguageModel, CausalLanguageModelConfig

_WORDS = (" the", " cat", " sat", "he", "at", " t", " c", " s", *" abcdefghijklmnopqrstuvwxyz.:\n")
PIECES = [
    (0.0, b"<unk>"),
    (0.0, b"\n<s>\n"),
    (0.0, b"\n</s>\n"),
    *((0.0, f"<0x{byte:02X}>".encode()) for byte in range(256)),
    *((-float(i), piece.encode()) for i, piece in enumerate(_WORDS)),
]
VOCAB_SIZE = len(PIECES)
TEXT = "\n\n".join(
    f"the {a} sat. the {b} {a} sat." for a in ("cat", "hat", "bat") for b in "abcdef"
)


def write_tokenizer(path: Path, pieces=PIECES) -> Path:
    records = b"".join(struct.pack("<fi", score, len(p)) + p for score, p in pieces)
    path.write_bytes(struct.pack("<i", max((len(p) for _, p in pieces), default=0)) + records)
    return path


def write_checkpoint(folder: Path, *, max_positions: int = 64) -> Path:
    """A Hugging Face folder: two layers, 24 wide, with its tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = load_llama2c_tokenizer(write_tokenizer(folder / "tokenizer.bin"))
    (folder / "tokenizer.bin").unlink()
    transformer = TransformerConfig(
        num_layers=2, embed_dim=24, num_heads=4, num_kv_heads=2, mlp_dim=32, activation="swiglu"
    )
    cfg = CausalLanguageModelConfig(
        vocab_size=VOCAB_SIZE,
        transformer=transformer,
        positions=Rope(),
        max_positions=max_positions,
    )
    fn, params = draw_parameters(lambda rngs: CausalLanguageModel(cfg, rngs=rngs), deviation=0.1)
    model = LanguageModel(cfg, fn, params, begin=1, ends=(2,))
    files = tokenizer_files(tokenizer)
    save_language_model(folder, model, card="# Tiny", tokenizer_files=files)
    return folder
