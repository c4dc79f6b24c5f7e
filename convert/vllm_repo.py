"""vLLM-Omni's v3 pipeline as the oracle, run from a folder that holds its package ``vllm_omni``.

Its adapters between the two stages are the project's own files; what they import from vLLM and
from the rest of the package is stood in for by objects that keep what they are called with.
Nothing of the folder is copied.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from mlx_higgs.types import CheckpointError

if TYPE_CHECKING:
    import numpy as np

ADAPTER = "vllm_omni/model_executor/stage_input_processors/higgs_audio_v3.py"
CHUNKS = "vllm_omni/model_executor/stage_input_processors/chunk_size_utils.py"
TALKER = "vllm_omni/model_executor/models/higgs_audio_v3/higgs_audio_v3_talker.py"
CODEC = "vllm_omni/model_executor/models/higgs_audio_v3/higgs_audio_v3_code2wav.py"
K = 8
Rows = list[list[int]]


class Settings(NamedTuple):
    """Of a connector, in frames, as its YAML spells them without ``codec_`` and ``_frames``."""

    initial: int
    chunk: int
    left: int
    right: int

    @property
    def config(self) -> dict[str, Any]:
        return {
            "extra": {
                "initial_codec_chunk_frames": self.initial,
                "codec_chunk_frames": self.chunk,
                "codec_left_context_frames": self.left,
                "codec_right_holdback_frames": self.right,
            }
        }


class Handoff(NamedTuple):
    """What the second stage gets after so many rows; ``left`` and ``right`` of it are context."""

    row: int
    codes: Rows  # frames of K codes
    left: int
    right: int
    finished: bool


class VllmOmni:
    """The functions of the v3 pipeline that lie between the talker's rows and the codec.

    Raises:
        CheckpointError: the folder holds no such package, or one whose files need something else.
    """

    def __init__(self, root: Path):
        if not (root / ADAPTER).is_file():
            raise CheckpointError(f"{root} holds no vLLM-Omni that knows Higgs v3: no {ADAPTER}.")
        self._root = root
        self._adapter = _load(root / ADAPTER)

    @property
    def origin(self) -> dict[str, str]:
        """Which version it is: the commit of a checkout, else the package's; and the files."""
        return {
            "version": self._version(),
            **{
                Path(file).name: hashlib.sha256((self._root / file).read_bytes()).hexdigest()
                for file in (ADAPTER, CHUNKS, CODEC, TALKER)
            },
        }

    def _version(self) -> str:
        told = next(self._root.glob("vllm_omni-*.dist-info"), None)
        if told is not None:
            return told.stem.removeprefix("vllm_omni-")
        git = ["git", "-C", str(self._root), "rev-parse", "HEAD"]
        done = subprocess.run(git, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"

    def whole(self, rows: np.ndarray) -> Rows:
        """The frames ``[T, K]`` that all rows ``[L, K]`` of a request are handed over as."""
        import torch

        output = SimpleNamespace(multimodal_output={"codes": {"audio": torch.tensor(rows)}})
        done = SimpleNamespace(finished=True, outputs=[output])
        (payload,) = self._adapter.talker2code2wav([done])
        return _frames(payload.prompt_token_ids)

    def chunks(self, rows: np.ndarray, settings: Settings) -> Iterator[Handoff]:
        """One request, row by row; the last row is told to be the last."""
        import torch

        manager = SimpleNamespace(
            code_prompt_token_ids=defaultdict(list),
            connector=SimpleNamespace(config=settings.config),
        )
        for count, row in enumerate(torch.tensor(rows), start=1):
            finished = count == len(rows)
            request = SimpleNamespace(external_req_id="", is_finished=lambda f=finished: f)
            payload = self._adapter.talker2code2wav_async_chunk(
                manager, {"codes": {"audio": row[None]}}, request
            )
            if payload is not None:
                meta = payload.meta
                yield Handoff(
                    count,
                    _frames(payload.codes.audio.tolist()),
                    getattr(meta, "left_context_size", 0),  # an empty one says nothing of it
                    getattr(meta, "right_holdback_size", 0),
                    bool(meta.finished),
                )

    def ramp(self, sizes: list[int], steady: int, frames: int) -> list[tuple[int, int]]:
        """Of its adapters without look-ahead: ``[start, stop)`` of each chunk, the last at the end.

        Args:
            sizes: frames in the first chunks, then ``steady`` in each.
        """
        rule = _load(self._root / CHUNKS).compute_ramp_emit
        sent: list[tuple[int, int]] = []
        for count in range(1, frames + 1):
            due, new = rule(count, len(sent), sizes, steady, count == frames)
            if due:
                sent.append((count - new, count))
        return sent

    def trim(self, wave: np.ndarray, hop: int, left: int, right: int) -> np.ndarray:
        """What its second stage keeps of a window's samples ``[N]``."""
        import torch

        stage = _load(self._root / CODEC).HiggsAudioV3Code2Wav
        decoder = SimpleNamespace(decode_codes=torch.tensor, hop_length=hop)
        kept = stage.forward_chunk(
            decoder, wave[None, None], left_context_size=left, right_holdback_size=right
        )
        return kept[0, 0].numpy()

    def machine(self, logits: np.ndarray) -> Rows:
        """Logits ``[F, K, V]``, one step each -> its talker's rows, each the likeliest."""
        import torch

        talker = _talker(_load(self._root / TALKER).HiggsAudioV3TalkerForConditionalGeneration)
        cpu, rows = torch.device("cpu"), []
        for step in torch.tensor(logits):
            scores, index = step[None].clone(), torch.zeros(1, dtype=torch.long)
            talker._ensure_decode_state_capacity(1, cpu)
            talker._apply_delay_pattern_masking_batched(scores, index)
            talker._update_delay_state_batched(scores.argmax(-1), index, 1, cpu)
            rows.append(talker._decode_last_codes[0].tolist())
            if bool(talker._decode_generation_done[0]):
                break
        return rows


def _talker(kind: Any) -> Any:
    """Its talker with a sampler's state, and a language model that is none."""
    words = StandIn(tie_word_embeddings=True, vocab_size=16)
    config = StandIn(
        num_codebooks=K,
        codebook_size=1026,
        audio_hidden_size=1,
        tie_modality_embeddings=True,
        text_config=words,
        enable_flashinfer_api_unwrap=False,
        enable_mlp_cudagraph=False,
    )
    model_config = SimpleNamespace(hf_config=config, enforce_eager=True)
    return kind(vllm_config=SimpleNamespace(model_config=model_config))


def _frames(flat: list[int]) -> Rows:
    """Codes codebook after codebook -> frames."""
    count = len(flat) // K
    return [flat[frame::count] for frame in range(count)]


# ---------------------------------------------------------------- modules that are not there


class StandIn:
    """What an import gives that is not there: keeps the named values it is called with."""

    embed_tokens = None  # of a language model

    def __init__(self, *_: Any, **named: Any):
        self.__dict__.update(named)

    def warning(self, *_: Any) -> None:
        """Of a logger."""


class _Absent(ModuleType):
    """A module in which every name is found, and is a stand-in."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn


class _Finder(MetaPathFinder, Loader):
    """Finds any module of vLLM and of vLLM-Omni, and nothing in it."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if _is_vllms(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Absent(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _is_vllms(name: str) -> bool:
    return name.partition(".")[0] in ("vllm", "vllm_omni")


@contextmanager
def _stood_in_for() -> Iterator[None]:
    """While this lasts, nothing of vLLM is imported but stand-ins; what was there comes back."""
    there = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_vllms(name)}
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in filter(_is_vllms, list(sys.modules)):
            del sys.modules[name]
        sys.modules.update(there)


def _load(path: Path) -> Any:
    """The module in that file."""
    spec = spec_from_file_location(f"omni_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses look there
    try:
        with _stood_in_for():
            spec.loader.exec_module(module)
    except (ImportError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(f"{path} cannot be imported alone: {error}") from error
    finally:
        del sys.modules[module.__name__]
    return module
