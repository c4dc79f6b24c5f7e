"""Boson's own model as the oracle, run from a checkout of github.com/boson-ai/higgs-audio.

Its code was written for transformers 4.46. The few names that have gone since are put back
before it is imported; nothing of the checkout is copied.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

from mlx_higgs.types import CheckpointError, GenerationError

from .layouts import EOT, Layout, read_config, rename, weight_layout
from .reference import Prompt, read_tensors

if TYPE_CHECKING:
    import torch


def import_boson(repo: Path) -> Any:
    """Boson's ``modeling_higgs_audio`` module from the checkout at ``repo``."""
    if not (repo / "boson_multimodal").is_dir():
        raise CheckpointError(
            f"{repo} is no checkout of boson-ai/higgs-audio: no boson_multimodal."
        )
    sys.path.insert(0, str(repo))
    _restore_old_transformers()
    try:
        name = "boson_multimodal.model.higgs_audio.modeling_higgs_audio"
        modeling: Any = importlib.import_module(name)
    except ImportError as error:
        raise CheckpointError(f"Boson's code in {repo} cannot be imported: {error}") from error
    modeling.LlamaDecoderLayer = _old_layer()
    modeling.WhisperEncoderLayer = _old_encoder_layer()
    return modeling


def _old_layer() -> type:
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    class OldLayer(LlamaDecoderLayer):
        """The call and the tuple of transformers 4.46."""

        def forward(self, hidden_states, past_key_value=None, **kwargs):  # type: ignore[override]
            return (super().forward(hidden_states, past_key_values=past_key_value, **kwargs),)

    return OldLayer


def import_data(repo: Path) -> tuple[Any, Any]:
    """Boson's ``chatml_dataset`` and ``higgs_audio_collator`` modules.

    What they import and what needs none of it here (librosa, pandas ...) is stood in for.
    """
    import_boson(repo)
    wanted = ("librosa", "dacite", "pandas", "loguru")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    sys.modules.update({name: MagicMock() for name in missing})
    try:
        return (
            importlib.import_module("boson_multimodal.dataset.chatml_dataset"),
            importlib.import_module("boson_multimodal.data_collator.higgs_audio_collator"),
        )
    finally:  # others ask whether these are installed
        for name in missing:
            del sys.modules[name]


def _old_encoder_layer() -> Any:
    from transformers.models.whisper.modeling_whisper import WhisperEncoderLayer

    class OldEncoderLayer(WhisperEncoderLayer):
        """The call and the tuple of transformers 4.46, and a name that Boson's code patches."""

        def __init__(self, config):
            super().__init__(config)
            vars(self.self_attn)["_shape"] = (
                None  # what it does for a batch of nothing, views do now
            )

        def forward(self, hidden_states, attention_mask, **_):  # type: ignore[override]
            if not len(hidden_states):  # which those views cannot take
                return (hidden_states,)
            return (super().forward(hidden_states, attention_mask),)

    return OldEncoderLayer


def _restore_old_transformers() -> None:
    from transformers.cache_utils import DynamicCache
    from transformers.models.llama import modeling_llama

    class OldAttention(modeling_llama.LlamaAttention):
        """The call and the triple result of transformers 4.46."""

        def forward(self, hidden_states, past_key_value=None, **kwargs):  # type: ignore[override]
            output, weights = super().forward(
                hidden_states,
                kwargs["position_embeddings"],
                kwargs["attention_mask"],
                past_key_value,
            )
            return output, weights, past_key_value

    modeling_llama.LLAMA_ATTENTION_CLASSES = {  # type: ignore[attr-defined]
        "sdpa": OldAttention,
        "eager": OldAttention,
    }
    DynamicCache.get_max_cache_shape = lambda self: None  # type: ignore[attr-defined]


class BosonTalker:
    """``HiggsAudioModel``: its forward pass, and its own sampling method with RAS off."""

    machine = "boson"

    def __init__(self, folder: Path, repo: Path):
        modeling = import_boson(repo)
        self.layout: Layout
        self.layout, _ = read_config(folder)
        if self.layout != "boson":
            raise CheckpointError(f"{folder}: Boson's model needs Boson's nested config.json.")
        raw = json.loads((folder / "config.json").read_text())
        config = modeling.HiggsAudioConfig(**raw)
        for part in (config, config.text_config):
            part._attn_implementation = "sdpa"
        tensors = read_tensors(folder)
        weight_layout(list(tensors))
        self.model = modeling.HiggsAudioModel(config).float().eval()
        self.model.load_state_dict(
            {rename(name, "boson"): tensor.float() for name, tensor in tensors.items()}
        )
        self.name = f"boson-ai/higgs-audio at {_commit(repo)}"
        self.config: Any = _transformers_names(raw)

    def _inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        import torch

        clip = {self.config.audio_token_id, self.config.audio_delay_token_id}
        marks = [i in clip for i in prompt.ids]
        first = [m and not (n and marks[n - 1]) for n, m in enumerate(marks)]
        # one placeholder for each clip, whatever its length
        pairs = zip(prompt.ids, marks, first, strict=True)
        ids = [self.config.audio_token_id if m else i for i, m, f in pairs if f or not m]
        inputs = {"input_ids": torch.tensor([ids])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if prompt.rows:
            starts = [sum(marks[:n]) for n, is_first in enumerate(first) if is_first]
            inputs["audio_out_ids"] = torch.tensor(prompt.rows).T
            inputs["audio_out_ids_start"] = torch.tensor(starts)
        return inputs

    def _forward(self, **inputs: Any) -> Any:
        import torch

        with torch.no_grad():
            return self.model(**inputs, use_cache=True, return_dict=True, output_hidden_states=True)

    def prefill(self, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        out = self._forward(**self._inputs(prompt))
        with torch.no_grad():  # its own audio logits stop at the clips; the head has no such limit
            audio = self.model.audio_decoder_proj.audio_lm_head(out.hidden_states[-1][0])
        audio = audio.view(len(prompt.ids), self.config.num_codebooks, -1)
        if not torch.allclose(audio[out.audio_out_mask[0]], out.audio_logits, atol=1e-4):
            raise CheckpointError("Boson's audio logits are not its audio head's.")
        return audio, out.logits[0]

    def greedy(self, prompt: Prompt, frames: int) -> list[list[int]]:
        import torch

        out = self._forward(**self._inputs(prompt))
        mask = out.audio_in_discrete_codes_mask | out.audio_out_mask
        row = torch.full((self.config.num_codebooks,), self.config.audio_stream_bos_id)
        sampler = Sampler(self.model)
        rows: list[list[int]] = []
        while len(rows) < frames and self.config.audio_stream_eos_id not in row:
            rows.append(row.tolist())
            out = self._forward(
                input_ids=torch.tensor([[self.config.audio_token_id]]),
                attention_mask=torch.ones(1, mask.shape[1] + 1, dtype=torch.long),
                audio_out_ids=row[:, None],
                audio_out_ids_start=torch.tensor([0]),
                past_key_values=out.past_key_values,
                cache_audio_discrete_codes_mask=mask,
            )
            mask = torch.cat([mask, out.audio_in_discrete_codes_mask | out.audio_out_mask], dim=1)
            row = sampler.next_row(out.audio_logits, torch.tensor(rows).T)
        if self.generate(prompt, frames)[: len(rows)] != rows:
            raise GenerationError("Boson's own loop goes another way.")
        return rows

    def generate(self, prompt: Prompt, frames: int) -> list[list[int]]:
        """Its own loop (``_sample``), greedy and without RAS: ``frames`` rows, whatever they say.

        ``generate`` around it only reads options, in ways that transformers has left behind.
        """
        import torch

        inputs = {"audio_out_ids": None, "audio_out_ids_start": None, **self._inputs(prompt)}
        ids = inputs.pop("input_ids")
        model: Any = self.model
        model._has_unfinished_sequences = lambda finished, *_, **__: not finished
        options = dict.fromkeys(
            ("output_attentions", "output_hidden_states", "output_scores", "output_logits"), False
        )
        kwargs = {
            "audio_out_bos_token_id": self.config.audio_bos_token_id,
            "audio_eos_token_id": model.config.audio_eos_token_id,
        }
        config = SimpleNamespace(
            **options,
            generation_kwargs=kwargs,
            _pad_token_tensor=None,
            return_dict_in_generate=False,
            max_length=None,
            do_sample=False,
            use_cache=True,
        )
        with torch.no_grad():
            _, segments = model._sample(
                ids,
                lambda _, scores: scores,
                _Until(ids.shape[1] + frames, model.config.audio_eos_token_id),
                config,
                False,
                None,
                None,
                use_cache=True,
                **inputs,
            )
        return segments[0].T.tolist()


class _Until(list):
    """A stopping criterion as ``_sample`` calls it: so many ids, or one that ends speech."""

    def __init__(self, longest: int, end: int):
        super().__init__()
        self._longest, self._end = longest, end

    def __call__(self, ids: torch.Tensor, scores: Any) -> torch.Tensor:
        import torch

        return torch.tensor([ids.shape[1] >= self._longest or ids[0, -1] == self._end])


class Sampler:
    """Boson's ``_sample_audio_tokens`` with the state it is given back at every step.

    Args:
        model: a ``HiggsAudioModel``, or anything with its method and its few settings.
    """

    def __init__(self, model: Any, *, processor: Any = None, do_sample: bool = False, **ras: int):
        self.model = model
        self.processor = processor or (lambda ids, scores: scores)
        self.do_sample = do_sample
        settings = {"audio_eos_token_id": -2, **ras}  # the text id that says: finished
        self.generation_config = SimpleNamespace(generation_kwargs=settings)
        self.num_delay = 0
        self.remaining = None
        self.finished = False

    def next_row(self, audio_logits: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        """Logits ``[1, K, V]`` and the delayed rows so far ``[K, L]`` -> the next row ``[K]``."""
        text, row, _, _, self.num_delay, self.remaining = self.model._sample_audio_tokens(
            hidden_states=None,
            audio_logits=audio_logits,
            audio_out_ids=history,
            do_sample=self.do_sample,
            logits_processor=self.processor,
            device=audio_logits.device,
            torch_generator=None,
            generation_config=self.generation_config,
            num_delay=self.num_delay,
            num_remaining_delays=self.remaining,
        )
        self.finished = bool((text == -2).any())
        return row


def _transformers_names(raw: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(
        num_codebooks=raw["audio_num_codebooks"],
        codebook_size=raw["audio_codebook_size"] + 2,
        vocab_size=raw["text_config"]["vocab_size"],
        audio_stream_bos_id=raw["audio_stream_bos_id"],
        audio_stream_eos_id=raw["audio_stream_eos_id"],
        audio_token_id=raw["audio_out_token_idx"],
        audio_bos_token_id=raw["audio_out_bos_token_id"],
        audio_delay_token_id=raw["audio_out_bos_token_id"] + 1,
        bos_token_id=raw["text_config"]["bos_token_id"],
        eos_token_id=raw["text_config"]["bos_token_id"] + EOT,
        pad_token_id=raw["pad_token_id"],
        shift=int(raw["use_delay_pattern"]),
    )


def _commit(repo: Path) -> str:
    head = repo / ".git" / "HEAD"
    if not head.is_file():
        return "an unknown commit"
    text = head.read_text().strip()
    ref = repo / ".git" / text.removeprefix("ref: ")
    return (ref.read_text().strip() if ref.is_file() else text)[:12]
