"""A tiny BERT of numpy: its folder as transformers writes it, and its states by plain formulas."""

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from recipe_jax.huggingface.tokenizers import tokenizer_files

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijkl"]
WIDTH, HEADS, HIDDEN, LAYERS, POSITIONS = 12, 3, 20, 2, 40
CONFIG = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": len(WORDS),
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
    "pad_token_id": 0,
}


def draw_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Tensors by the names of `BertModel`; none of them trivial."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": (WIDTH,),
        "embeddings.LayerNorm.bias": (WIDTH,),
        "pooler.dense.weight": (WIDTH, WIDTH),
        "pooler.dense.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        for name, (outputs, inputs) in {
            "attention.self.query": (WIDTH, WIDTH),
            "attention.self.key": (WIDTH, WIDTH),
            "attention.self.value": (WIDTH, WIDTH),
            "attention.output.dense": (WIDTH, WIDTH),
            "intermediate.dense": (HIDDEN, WIDTH),
            "output.dense": (WIDTH, HIDDEN),
        }.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (outputs, inputs)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (outputs,)
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (WIDTH,)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (WIDTH,)
    return {name: rng.normal(0.2, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each letter, `[CLS]` before and `[SEP]` after each text."""
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )


def write_bert_folder(folder: Path, tensors: dict[str, np.ndarray] | None = None) -> Path:
    """`config.json`, `model.safetensors` and a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(draw_tensors() if tensors is None else tensors, folder / "model.safetensors")
    for name, content in tokenizer_files(make_tokenizer()).items():
        (folder / name).write_bytes(content)
    return folder


def write_sentence_modules(
    folder: Path, *, pooling: dict[str, object] | None = None, normalize: bool = True
) -> Path:
    """What sentence-transformers writes beside the encoder."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    kinds += [("2_Normalize", "Normalize")] if normalize else []
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    modes = {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": True}
    modes |= {"pooling_mode_mean_tokens": False} if pooling is None else pooling
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"max_seq_length": 9, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    return folder


def plain_states(
    tensors: dict[str, np.ndarray], tokens: list[int], types: list[int] | None = None
) -> np.ndarray:
    """The last states of one text without padding (Devlin et al. 2019; Vaswani et al. 2017)."""
    arrays = {name: array.astype(np.float64) for name, array in tensors.items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return scaled * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

    def heads(name: str, x: np.ndarray) -> np.ndarray:
        return linear(name, x).reshape(len(x), HEADS, -1).swapaxes(0, 1)

    x = arrays["embeddings.word_embeddings.weight"][tokens]
    x = x + arrays["embeddings.position_embeddings.weight"][: len(tokens)]
    kinds = [0] * len(tokens) if types is None else types
    x = norm("embeddings.LayerNorm", x + arrays["embeddings.token_type_embeddings.weight"][kinds])
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            heads(f"{at}.attention.self.{name}", x) for name in ("query", "key", "value")
        )
        logits = query @ key.swapaxes(1, 2) / math.sqrt(WIDTH // HEADS)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        attended = (weights @ value).swapaxes(0, 1).reshape(len(x), WIDTH)
        y = linear(f"{at}.attention.output.dense", attended)
        x = norm(f"{at}.attention.output.LayerNorm", x + y)
        hidden = linear(f"{at}.intermediate.dense", x)
        hidden = 0.5 * hidden * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", hidden))
    return x
