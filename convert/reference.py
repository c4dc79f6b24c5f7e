"""transformers as the oracle: its talker and codec, loaded strictly and run in float32."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import math
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from mlx_higgs.types import CheckpointError, GenerationError, InputError

from .layouts import Layout, read_config, rename, weight_layout

if TYPE_CHECKING:
    import torch

LengthMode = Literal["hf", "boson", "align"]
LENGTH_MODES: tuple[LengthMode, ...] = ("hf", "boson", "align")


@dataclass(frozen=True)
class Prompt:
    """``ids`` ``[S]`` with every clip's placeholders expanded; ``rows`` ``[R, K]`` fill them."""

    ids: list[int]
    rows: list[list[int]]


class Reference(Protocol):
    """What a golden needs from a reference model."""

    @property
    def name(self) -> str: ...

    @property
    def layout(self) -> str: ...

    machine: str  # whose rules its greedy rows follow, as `mlx_higgs.delay` calls them
    config: Any

    def prefill(self, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of every position: audio ``[S, K, V]``, text ``[S, vocab]`` or None."""
        ...

    def greedy(self, prompt: Prompt, frames: int) -> list[list[int]]:
        """Rows ``[F, K]``, at most ``frames``.

        Of v2 with the all-BOS row first and none that holds EOS; of v3 the sampled ones.
        """
        ...


# ---------------------------------------------------------------- weights


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint folder: its index's files when all exist, else the single one."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    files = [single]
    if index.is_file():
        listed = set(json.loads(index.read_text())["weight_map"].values())
        shards = [folder / name for name in sorted(listed)]
        files = shards if all(path.is_file() for path in shards) else files
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            tensors.update(load_file(path))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
    return tensors


def load_strictly(
    kind: Any,
    config: Any,
    tensors: dict[str, torch.Tensor],
    dtype: str = "float32",
    **options: Any,
) -> Any:
    """A model of class ``kind`` in which every weight has come from ``tensors``."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    model, info = kind.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
        **options,
    )
    wrong = {what: sorted(map(str, names)) for what, names in info.items() if names}
    if wrong:
        raise CheckpointError(f"The weights do not fit {kind.__name__}: {wrong}.")
    return model.eval()


# ---------------------------------------------------------------- talker


class TransformersTalker:
    """``HiggsAudioV2ForConditionalGeneration`` on a checkpoint of any layout."""

    machine = "transformers"

    def __init__(self, folder: Path):
        import transformers

        self.layout: Layout
        self.layout, arguments = read_config(folder)
        self.config: Any = transformers.HiggsAudioV2Config(**arguments)
        tensors = read_tensors(folder)
        weight_layout(list(tensors))
        tensors = {rename(name, "transformers"): tensor for name, tensor in tensors.items()}
        self.model = load_strictly(
            transformers.HiggsAudioV2ForConditionalGeneration,
            self.config,
            tensors,
            use_text_head="text_lm_head.weight" in tensors,
        )
        self.name = f"transformers {transformers.__version__}"

    def _inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        import torch

        inputs = {"input_ids": torch.tensor([prompt.ids])}
        if prompt.rows:
            inputs["audio_input_ids"] = torch.tensor([prompt.rows])
            inputs["audio_input_ids_mask"] = torch.ones(1, len(prompt.rows), dtype=torch.bool)
        return inputs

    def prefill(self, prompt: Prompt) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        with torch.no_grad():
            hidden = self.model.model(**self._inputs(prompt)).last_hidden_state[0]
            audio = self.model.audio_lm_head(hidden)
            head = self.model.text_lm_head
            text = None if head is None else head(hidden)
        return audio.view(len(prompt.ids), self.config.num_codebooks, -1), text

    def greedy(self, prompt: Prompt, frames: int) -> list[list[int]]:
        import torch

        row = [self.config.audio_stream_bos_id] * self.config.num_codebooks
        rows: list[list[int]] = []
        with torch.no_grad():
            cache = self.model(**self._inputs(prompt), use_cache=True).past_key_values
            while len(rows) < frames and self.config.audio_stream_eos_id not in row:
                rows.append(row)
                step = torch.tensor([[row]])
                out = self.model(audio_input_ids=step, past_key_values=cache, use_cache=True)
                best = out.logits[0, -1].view(self.config.num_codebooks, -1).argmax(-1).tolist()
                row = ramp_in(best, len(rows), self.config.audio_stream_bos_id)
        if self.generate(prompt, frames)[: len(rows)] != rows:
            raise GenerationError(
                "transformers' own generate goes another way. It does so by design where a clip's "
                f"delay ids are among the last {self.config.num_codebooks} ids of a prompt."
            )
        return rows

    def generate(self, prompt: Prompt, frames: int) -> list[list[int]]:
        """The class's own ``generate``, greedy and without RAS: ``frames`` rows or fewer."""
        import torch

        self.model.generation_config.ras_win_len = None
        with torch.no_grad():
            ids = self.model.generate(
                **self._inputs(prompt), do_sample=False, max_new_tokens=frames
            )
        return ids[0, len(prompt.rows) :].tolist()


def ramp_in(row: list[int], step: int, bos: int) -> list[int]:
    """A sampled row with BOS wherever its codebook is still asleep: codebook k wakes in row k+1."""
    return [code if k < step else bos for k, code in enumerate(row)]


# ---------------------------------------------------------------- codec


def codec_class() -> Any:
    """``HiggsAudioV2TokenizerModel``, which imports torchaudio only to resample."""
    if "torchaudio" not in sys.modules and not _imports("torchaudio"):
        stub = types.ModuleType("torchaudio")
        stub.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
        functional: Any = types.ModuleType("torchaudio.functional")
        functional.resample = sinc_resample
        stub.functional = functional  # type: ignore[attr-defined]
        sys.modules.update({"torchaudio": stub, "torchaudio.functional": functional})
    module = "transformers.models.higgs_audio_v2_tokenizer.modeling_higgs_audio_v2_tokenizer"
    return importlib.import_module(module).HiggsAudioV2TokenizerModel


def _imports(name: str) -> bool:
    if importlib.util.find_spec(name) is None:
        return False
    try:
        importlib.import_module(name)
    except (ImportError, OSError):  # the wheel on PyPI is a CUDA build
        return False
    return True


def sinc_resample(wave: torch.Tensor, old: int, new: int) -> torch.Tensor:
    """torchaudio's default resampling (``sinc_interp_hann``, width 6, rolloff 0.99), ``[..., N]``.

    Kernel and convolution in float64; `torchaudio.functional.resample` convolves in float32.
    """
    import torch

    common = math.gcd(old, new)
    old, new = old // common, new // common
    zeros, cutoff = 6, min(old, new) * 0.99
    reach = math.ceil(zeros * old / cutoff)
    taps = torch.arange(-reach, reach + old, dtype=torch.float64) / old
    phases = torch.arange(new, dtype=torch.float64)[:, None] / new
    time = ((taps - phases) * cutoff).clamp(-zeros, zeros)
    hann = torch.cos(time * math.pi / (2 * zeros)) ** 2
    kernel = torch.sinc(time) * hann * (cutoff / old)  # [phase, tap]
    flat = wave.reshape(-1, 1, wave.shape[-1]).double()
    padded = torch.nn.functional.pad(flat, (reach, reach + old))
    out = torch.nn.functional.conv1d(padded, kernel[:, None], stride=old)
    out = out.transpose(1, 2).reshape(*wave.shape[:-1], -1)
    return out[..., : math.ceil(wave.shape[-1] * new / old)].to(wave.dtype)


class TransformersCodec:
    """``HiggsAudioV2TokenizerModel``, and Boson's way of aligning lengths on its sub-modules."""

    def __init__(self, folder: Path):
        import transformers

        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} holds no config.json.")
        kind = codec_class()
        tensors = read_tensors(folder)
        if "quantizer.quantizers.0.codebook.embed" not in tensors:
            raise CheckpointError(f"{folder} holds no codec in transformers' layout.")
        tensors.pop("semantic_model.masked_spec_embed", None)  # only ever used in training
        config: Any = transformers.HiggsAudioV2TokenizerConfig.from_pretrained(folder)
        config.semantic_model_config.mask_time_prob = 0.0  # or the class would ask for it
        self.model = load_strictly(kind, config, tensors)
        self.hop = config.hop_length
        self.name = f"transformers {transformers.__version__}"

    def encode(self, wave: torch.Tensor, length_mode: LengthMode) -> torch.Tensor:
        """Mono ``wave`` ``[N]`` -> codes ``[T, K]``."""
        import torch

        if length_mode == "align":
            wave = torch.nn.functional.pad(wave, (0, -len(wave) % self.hop))
        with torch.no_grad():
            try:
                codes = (
                    self._boson_encode(wave[None, None])
                    if length_mode == "boson"
                    else self.model.encode(wave[None, None]).audio_codes
                )
            except RuntimeError as error:
                raise InputError(f"The reference cannot encode {len(wave)} samples.") from error
        return codes[0].T

    def _boson_encode(self, wave: torch.Tensor) -> torch.Tensor:
        import torch

        m = self.model
        features = m._extract_semantic_features(wave)
        semantic = m.encoder_semantic(features.transpose(1, 2))
        acoustic = m.acoustic_encoder(wave)
        if acoustic.shape[2] != semantic.shape[2]:
            pad = 160 * m.config.semantic_downsample_factor
            acoustic = m.acoustic_encoder(torch.nn.functional.pad(wave, (pad, pad)))
        frames = min(acoustic.shape[2], semantic.shape[2])
        both = torch.cat([acoustic[..., :frames], semantic[..., :frames]], dim=1)
        latent = m.fc(both.transpose(1, 2)).transpose(1, 2)
        return m.quantizer.encode(latent, m.config.target_bandwidths[-1]).transpose(0, 1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes ``[T, K]`` -> audio ``[T * hop]``."""
        import torch

        with torch.no_grad():
            return self.model.decode(codes.T[None]).audio_values[0, 0]
