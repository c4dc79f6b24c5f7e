"""The v3 reference: transformers' ``Qwen3Model`` between a checkpoint's own tables.

There is no class of transformers for v3. What is around the backbone follows ``higgs_tts`` of
sglang-omni: how rows are embedded and scored, and how a stream begins and ends.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_higgs.types import CheckpointError

from .reference import Prompt, load_strictly, read_tensors

if TYPE_CHECKING:
    import torch

PLACEHOLDER = -100
MODEL_TYPE = "higgs_multimodal_qwen3"
TEXT_TABLE = "tied.embedding.text_embedding.weight"
AUDIO_TABLE = "tied.embedding.modality_embeddings.0.embedding.weight"
AUDIO_HEAD = "tied.head.modality_heads.0.weight"
BODY = "body."
ELSEWHERE = ("tied.embedding.modality_embeddings.0.model.", "tied.head.text_head.")


@dataclass(frozen=True)
class Config:
    """What a prompt and a stream are made of, by the names that ``dump_golden`` asks for."""

    folder: Path
    num_codebooks: int
    vocab_size: int
    codebook_size: int  # with BOC and EOC
    audio_token_id: int = PLACEHOLDER
    audio_delay_token_id: int = PLACEHOLDER  # a clip's last rows are like the others

    @property
    def audio_stream_bos_id(self) -> int:
        return self.codebook_size - 2

    @property
    def audio_stream_eos_id(self) -> int:
        return self.codebook_size - 1

    @property
    def audio_bos_token_id(self) -> int:
        return self.token("<|audio|>")

    @property
    def words(self) -> int:
        """Ids below this are words."""
        return min(self.token("<|tts|>"), self.vocab_size)

    def token(self, name: str) -> int:
        """The id of a special token, which the checkpoint's own tokenizer knows."""
        found = self._tokenizer.token_to_id(name)
        if found is None:
            raise CheckpointError(f"{self.folder}: its tokenizer has no {name}.")
        return found

    def cloning(self, transcript: list[int], codes: list[list[int]], text: list[int]) -> list[Any]:
        """The parts of a prompt that clones a clip."""
        before, clip, after = "<|ref_text|>", "<|ref_audio|>", "<|text|>"
        return [
            [self.token("<|tts|>"), self.token(before), *transcript, self.token(clip)],
            codes,
            [self.token(after), *text, self.audio_bos_token_id],
        ]

    def plain(self, text: str) -> list[int]:
        """The ids of a prompt that says a text in any voice."""
        said = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self.token("<|tts|>"), self.token("<|text|>"), *said, self.audio_bos_token_id]

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.folder / "tokenizer.json"))


def is_v3(folder: Path) -> bool:
    """Whether a folder's config is a v3 talker's."""
    path = folder / "config.json"
    return path.is_file() and json.loads(path.read_text()).get("model_type") == MODEL_TYPE


class QwenTalker:
    """A v3 checkpoint in the width ``dtype``; numbers leave it as float32."""

    layout = "published"
    machine = "sglang"

    def __init__(self, folder: Path, dtype: str = "float32", device: str = "cpu"):
        import torch
        import transformers

        raw = json.loads((folder / "config.json").read_text())
        audio = raw["audio_encoder_config"]
        tensors = read_tensors(folder)
        wanted = {k: v for k, v in tensors.items() if not k.startswith(ELSEWHERE)}
        table, head = wanted.pop(AUDIO_TABLE), wanted.pop(AUDIO_HEAD, None)
        head = table if audio.get("tie_word_embeddings", True) else head
        if head is None:
            raise CheckpointError(f"{folder} lacks {AUDIO_HEAD}, and its config ties no heads.")
        self.table = table.to(device, getattr(torch, dtype))
        self.head = head.to(device, getattr(torch, dtype))
        body = {_in_qwen(name): tensor for name, tensor in wanted.items()}
        config = transformers.Qwen3Config(**raw["text_config"])
        model = load_strictly(transformers.Qwen3Model, config, body, dtype=dtype)
        self.model = model.to(device)
        self.dtype = dtype
        self.config = Config(folder, audio["num_codebooks"], config.vocab_size, audio["vocab_size"])
        self.name = f"transformers {transformers.__version__}"

    def embed(self, prompt: Prompt) -> torch.Tensor:
        """Embeddings ``[S, D]``: words from one table, rows from the other."""
        import torch

        ids = torch.tensor(prompt.ids, device=self.table.device)
        words = self.model.embed_tokens(ids.clamp(min=0))
        if prompt.rows:
            words[ids == PLACEHOLDER] = self.embed_rows(prompt.rows)
        return words

    def embed_rows(self, rows: list[list[int]]) -> torch.Tensor:
        """Delayed rows ``[R, K]`` -> ``[R, D]``: a lookup for each codebook, added."""
        import torch

        books = torch.arange(self.config.num_codebooks) * self.config.codebook_size
        return self.table[(torch.tensor(rows) + books).to(self.table.device)].sum(dim=1)

    def hidden(self, prompt: Prompt) -> torch.Tensor:
        """Last hidden states ``[S, D]``, in the model's width."""
        import torch

        with torch.no_grad():
            return self.model(inputs_embeds=self.embed(prompt)[None]).last_hidden_state[0]

    def audio_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., D]`` -> float32 ``[..., K, V]``, multiplied in the model's width."""
        logits = (hidden @ self.head.T).float()
        return logits.view(*hidden.shape[:-1], self.config.num_codebooks, -1)

    def text_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[..., D]`` -> float32 ``[..., vocab]``, by the tied table."""
        import torch

        with torch.no_grad():
            return (hidden @ self.model.embed_tokens.weight.T).float()

    def prefill(self, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of every position: audio ``[S, K, V]``, text ``[S, vocab]``."""
        hidden = self.hidden(prompt)
        return self.audio_logits(hidden), self.text_logits(hidden)

    def greedy(self, prompt: Prompt, frames: int) -> list[list[int]]:
        """Rows ``[F, K]`` from the prompt's end on, the one that ends the stream included."""
        import torch

        stream, rows = Stream(self.config), []
        inputs, cache = self.embed(prompt), None
        while len(rows) < frames and not stream.done:
            with torch.no_grad():
                out = self.model(inputs_embeds=inputs[None], past_key_values=cache, use_cache=True)
                logits = self.audio_logits(out.last_hidden_state[0, -1])
            rows.append(stream.take(logits.argmax(-1).tolist()))
            inputs, cache = self.embed_rows(rows[-1:]), out.past_key_values
        return rows


class Stream:
    """Where a stream stands, by sglang-omni's rules.

    For K rows the codebooks wake one by one, and an EOC says nothing. After that an EOC of the
    first codebook is followed by K - 1 rows more, whatever is in them.
    """

    def __init__(self, config: Config):
        self._config = config
        self._awake = 0  # codebooks, less one, that may speak
        self._left: int | None = None  # rows before the last one
        self.done = False

    def take(self, row: list[int]) -> list[int]:
        """A sampled row ``[K]`` -> the row that enters the stream."""
        K = self._config.num_codebooks
        if self._awake < K:
            kept = row[: self._awake + 1]
            self._awake += 1
            return kept + [self._config.audio_stream_bos_id] * (K - len(kept))
        if self._left is not None:
            self._left -= 1
            self.done = self._left <= 0
        elif row[0] == self._config.audio_stream_eos_id:
            self._left = K - 2
        return row


def _in_qwen(name: str) -> str:
    return "embed_tokens.weight" if name == TEXT_TABLE else name.removeprefix(BODY)
