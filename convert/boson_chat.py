"""Boson's own ``generate``, with its three modes: what a model answers in words and speech."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .boson_repo import BosonTalker

if TYPE_CHECKING:
    import torch

Script = list[int | list[int] | None]  # what each forward pass is made to say: an id or a row


@dataclass
class Answered:
    """What came out.

    Attributes:
        ids: all that follows the prompt in ``sequences``: one placeholder for each segment.
        segments: delayed rows ``[L, K]`` of each.
    """

    ids: list[int]
    segments: list[list[list[int]]]


@dataclass
class Asked:
    """A prompt as Boson takes it.

    Attributes:
        ids: with one ``<|AUDIO_OUT|>`` for each clip.
        clips: delayed rows ``[L, K]`` of each; the last may be cut where it is to go on.
    """

    ids: list[int]
    clips: list[list[list[int]]] = field(default_factory=list)


class BosonChat:
    """``HiggsAudioModel.generate`` on a tiny checkpoint.

    Args:
        stops: ids that end an answer, as ``serve_engine.py``'s stop strings do.
        banned: ids that are never written. Its forward pass breaks off at a placeholder it has no
            audio for.
    """

    def __init__(self, folder: Path, repo: Path, *, stops: list[int], banned: list[int]):
        talker = BosonTalker(folder, repo)
        self.config, self.model = talker.config, talker.model
        self.audio_eos = self.model.config.audio_eos_token_id
        self._stops, self._banned = stops, banned
        _adapt(self.model)

    def generate(
        self, asked: Asked, max_new_tokens: int, script: Script | None = None, **sampling: Any
    ) -> Answered:
        """Greedy, and without repetition-aware sampling unless ``sampling`` says otherwise."""
        import torch

        inputs: dict[str, Any] = {"input_ids": torch.tensor([asked.ids])}
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if asked.clips:
            lengths = [len(rows) for rows in asked.clips]
            starts = [sum(lengths[:n]) for n in range(len(lengths))]
            rows = [row for clip in asked.clips for row in clip]
            inputs["audio_out_ids"] = torch.tensor(rows).T
            inputs["audio_out_ids_start"] = torch.tensor(starts)
        hooks = [_last_row] if script is None else [_last_row, _Reciter(script)]
        handles = [self.model.register_forward_hook(hook) for hook in hooks]
        try:
            ids, segments = self.model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                use_cache=True,
                eos_token_id=self._stops,
                suppress_tokens=self._banned,
                audio_out_bos_token_id=self.config.audio_bos_token_id,
                audio_eos_token_id=self.audio_eos,
                **{"do_sample": False, **sampling},
            )
        finally:
            for handle in handles:
                handle.remove()
        said = [segment.T.tolist() for segment in segments]
        return Answered(ids[0, len(asked.ids) :].tolist(), said)


def _last_row(model: Any, inputs: Any, output: Any) -> Any:
    """Leaves the audio logits that are sampled from.

    Where a prompt ends in a clip, they come for all of its rows; ``_sample_audio_tokens`` takes the
    last, but makes as many text ids as there are rows, and ``_sample`` breaks off at the second.
    """
    if output.audio_logits is not None:
        output.audio_logits = output.audio_logits[-1:]
    return output


class _Reciter:
    """Puts a script in the place of a model's logits; the forward pass runs all the same."""

    def __init__(self, script: Script):
        self._steps = iter(script)

    def __call__(self, model: Any, inputs: Any, output: Any) -> Any:
        import torch

        step = next(self._steps)
        if isinstance(step, int):
            output.logits = output.logits.clone()
            output.logits[:, -1] = _one_hot(torch.tensor([step]), output.logits.shape[-1])
        elif step is not None:
            output.audio_logits = output.audio_logits.clone()
            row = torch.tensor(step)
            output.audio_logits[-1] = _one_hot(row, output.audio_logits.shape[-1])
        return output


def _one_hot(ids: torch.Tensor, size: int) -> torch.Tensor:
    import torch

    return 10.0 * torch.nn.functional.one_hot(ids, size).float()


def _adapt(model: Any) -> None:
    """Put back what ``generate`` of transformers 4.46 gave to the methods that Boson overrides."""
    import torch

    class Generating(type(model)):
        def _sample(self, input_ids: Any, *args: Any, streamer: Any = None, **kwargs: Any) -> Any:
            kwargs = {"past_key_values_buckets": None, **kwargs}
            kwargs.pop("logits_to_keep", None)
            if kwargs.get("attention_mask") is None:  # lost on the way
                kwargs["attention_mask"] = torch.ones_like(input_ids)
            if kwargs.get("past_key_values") is None:
                kwargs.pop("past_key_values", None)
            for name in ("audio_out_ids", "audio_out_ids_start"):
                kwargs.setdefault(name, None)
            kwargs.setdefault("cache_audio_discrete_codes_mask", None)
            return super()._sample(input_ids, *args, streamer=streamer, **kwargs)

        def _has_unfinished_sequences(self, this_peer_finished: Any, *_: Any, **__: Any) -> bool:
            return not this_peer_finished

        def _validate_model_kwargs(self, model_kwargs: Any) -> None:
            pass

    model.__class__ = Generating
    model.generation_config.generation_kwargs = {}
