"""Continue prompts, or answer a chat.

python -m experiments.language_model generate --prompt "Zoo" --max-new-tokens 100
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.commands import check_least, check_seed
from experiments.language_model.checkpoints import Checkpoint, read_checkpoint
from recipe_jax.data.texts import check_characters, render
from recipe_jax.token_beam_search import TokenBeamSearch, beam_search_tokens
from recipe_jax.token_decoding import OnToken, TokenSampling, generate

_GREEDY = TokenSampling(temperature=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """What is written, and how.

    Attributes:
        prompt: one or several; each is continued.
        model: a Hugging Face folder, a run folder or a llama2.c file; stories260K of
            `$RECIPE_JAX_DATA` if not given.
        chat: a prompt is what a user says, and the answer is wanted.
        system: what the chat begins with.
        max_new_tokens: most tokens to write.
        temperature: 0 takes the most probable token each time.
        top_k: choose among the k most probable tokens.
        top_p: choose among the fewest tokens that hold this probability.
        repetition_penalty: above 1, tokens that came before become less probable.
        beams: search for the most probable texts instead, so many at a time.
        stream: show the text of a single prompt while it grows.
        dtype: of activations and matrix products.
        seed: of every draw.
    """

    prompt: tuple[str, ...]
    model: Path | None = None
    chat: bool = False
    system: str | None = None
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    beams: int | None = None
    stream: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("--prompt needs at least one text")
        if self.system is not None and not self.chat:
            raise ValueError("--system is for --chat")
        if self.stream and (len(self.prompt) > 1 or self.beams is not None):
            raise ValueError("--stream takes one --prompt and no --beams")
        check_least(self, max_new_tokens=1, beams=1)
        check_seed(self.seed)
        sampling = self.sampling  # which checks the rest
        if self.beams is not None and sampling != _GREEDY:
            raise ValueError(
                f"--beams {self.beams} searches for the most probable text and draws nothing: it "
                "takes no --temperature, --top-k, --top-p or --repetition-penalty"
            )

    @property
    def sampling(self) -> TokenSampling:
        """How a token is drawn."""
        return TokenSampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
        )


def run(flags: Flags) -> dict[str, Any]:
    """Write, print."""
    checkpoint = read_checkpoint(flags.model, dtype=flags.dtype)
    rows = [encode_prompt(flags, checkpoint, text) for text in flags.prompt]
    started = time.perf_counter()
    found, log_probabilities = write(flags, checkpoint, rows)
    seconds = time.perf_counter() - started
    decode = checkpoint.tokenizer.decode
    # Decoded together with the prompt: a token may be only the end of a character or a word.
    texts = [
        decode(row + tokens, skip_special_tokens=True)[len(decode(row, skip_special_tokens=True)) :]
        for row, tokens in zip(rows, found, strict=True)
    ]
    if not flags.stream:
        for prompt, text in zip(flags.prompt, texts, strict=True):
            print(f"{prompt}|{text}", file=sys.stderr)
    return {
        "texts": texts,
        "log_probabilities": log_probabilities,
        "n": sum(map(len, found)),
        "seconds_with_compilation": seconds,
    }


def encode_prompt(flags: Flags, checkpoint: Checkpoint, text: str) -> list[int]:
    """The prompt's tokens, with those that the tokenizer or the chat template puts before."""
    tokenizer = checkpoint.tokenizer
    if flags.chat:
        system = [{"role": "system", "content": flags.system}] if flags.system else []
        text = render([*system, {"role": "user", "content": text}], tokenizer, prompt=True)
    check_characters(f"--prompt {text!r}", text)
    begins = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    # A chat template writes all that shall be there, as transformers has it.
    begins = begins or flags.chat
    tokens = list(tokenizer(text, add_special_tokens=not begins)["input_ids"])
    if not tokens and checkpoint.model.begin is not None:
        tokens = [checkpoint.model.begin]
    if not tokens:
        raise ValueError(f"--prompt {text!r} has no tokens, must have at least one")
    capacity = checkpoint.model.cfg.max_positions
    if len(tokens) + flags.max_new_tokens > capacity:
        raise ValueError(
            f"--prompt of {len(tokens)} tokens and --max-new-tokens {flags.max_new_tokens} must "
            f"together be at most the model's max_positions={capacity}"
        )
    return tokens


def write(
    flags: Flags, checkpoint: Checkpoint, rows: list[list[int]]
) -> tuple[list[list[int]], list[float]]:
    """New tokens of each row without the end, and their log-probabilities."""
    model, ends = checkpoint.model, checkpoint.model.ends
    lengths = np.array([len(row) for row in rows], np.int32)
    prompt = np.zeros((len(rows), lengths.max()), np.int32)
    for place, row in zip(prompt, rows, strict=True):
        place[: len(row)] = row
    given = (model.fn, model.params, jnp.asarray(prompt), jnp.asarray(lengths))
    if flags.beams is not None:
        search = TokenBeamSearch(num_beams=flags.beams)
        beams = beam_search_tokens(
            *given, max_new_tokens=flags.max_new_tokens, ends=ends, search=search
        )
        best = jax.tree.map(lambda x: np.asarray(x)[:, 0], beams)
        tokens, log_probability = best.tokens, best.log_probability
    else:
        texts = generate(
            *given,
            max_new_tokens=flags.max_new_tokens,
            ends=ends,
            sampling=flags.sampling,
            key=jax.random.key(flags.seed),
            on_token=printer(checkpoint.tokenizer, rows[0]) if flags.stream else None,
        )
        tokens, log_probability = np.asarray(texts.tokens), np.asarray(texts.log_probability)
    found = [[int(t) for t in row if t >= 0 and t not in ends] for row in tokens]
    return found, [float(x) for x in log_probability]


def printer(tokenizer: Any, prompt: list[int]) -> OnToken:
    """What prints a growing text: whole characters as they become known."""
    tokens = list(prompt)
    shown = tokenizer.decode(prompt, skip_special_tokens=True)
    print(shown, end="", file=sys.stderr, flush=True)

    def show(token: np.ndarray, added: np.ndarray) -> None:
        nonlocal shown
        if added[0]:
            tokens.append(int(token[0]))
            text = tokenizer.decode(tokens, skip_special_tokens=True)
            if not text.endswith("\ufffd"):
                print(text[len(shown) :], end="", file=sys.stderr, flush=True)
                shown = text

    return show
