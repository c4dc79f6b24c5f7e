"""mlx-audio's v3 loops on our weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import mlx.core as mx

from ..models.base import SpeechModel
from ..quantization import Quantization
from ..types import Prompt
from .contenders import MAX_FRAMES, NEVER
from .paced import paced
from .peer import give_weights, peer_module, rope_scaling
from .reads import Reading, watch

TALKER = "mlx_audio.tts.models.higgs_audio_v3"
NAMES = [("audio_codebook_embeddings.", "multimodal_embedding."), ("", "backbone.")]
# what generate() and batch_generate() of it do when nothing is asked for: the cheapest there is
SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": None, "top_k": None}


def talker(model: SpeechModel, quantization: Quantization | None) -> Any:
    """Its talker, holding the arrays of ours.

    Raises:
        InputError: the two talkers do not have the same weights.
    """
    args = model.args
    config = peer_module(f"{TALKER}.config")
    peer = peer_module(f"{TALKER}.model").Model(
        config.HiggsAudioV3Config(
            text_config=_text_config(config, args),
            audio_num_codebooks=args.num_codebooks,
            audio_codebook_size=args.codebook_vocab,
            audio_boc_token_id=model.delay.bos_id,
            audio_eoc_token_id=NEVER,
        )
    )
    give_weights(model, peer, quantization, NAMES)
    return peer


def _text_config(config: Any, args: Any) -> Any:
    return config.HiggsAudioV3TextConfig(
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        intermediate_size=args.intermediate_size,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_key_value_heads,
        head_dim=args.head_dim,
        vocab_size=args.vocab_size,
        rope_theta=args.rope.theta,
        rms_norm_eps=args.rms_norm_eps,
        rope_scaling=rope_scaling(args.rope),
    )


def work(peer: Any, model: SpeechModel, prompt: Prompt) -> Callable[[int], None]:
    """Its own loop for one text, unmodified but for a pause within, as it only ends by itself."""
    peer = _saying(peer, model, prompt)
    score = type(peer)._audio_logits  # each frame begins with it

    def loop(pause: Callable[[], None]) -> None:
        def paused(hidden: mx.array) -> mx.array:
            pause()
            return score(peer, hidden)

        peer._audio_logits = paused
        list(peer.generate("", max_new_frames=MAX_FRAMES, **SAMPLING))

    return paced(loop)


def batch_work(
    peer: Any, model: SpeechModel, prompt: Prompt, streams: int
) -> Callable[[int], None]:
    """Its session for several texts at once, which makes a frame of each in a step."""
    batches = peer_module("mlx_audio.tts.continuous")
    session = _saying(peer, model, prompt).create_tts_batch_session(
        batches.TTSBatchOptions(max_tokens=MAX_FRAMES, max_batch_size=streams, **SAMPLING)
    )
    session.add([batches.TTSBatchItem(number, "") for number in range(streams)])

    def work(frames: int) -> None:
        for _ in range(frames):
            session.step()
        mx.synchronize()

    return work


def _saying(peer: Any, model: SpeechModel, prompt: Prompt) -> Any:
    """The same talker, to which every text is our prompt."""
    x, _ = model.embed_prompt(prompt)
    mx.eval(x)
    same = copy(peer)
    same._build_prompt_embeddings = lambda text, references: (x, x.shape[1])
    return same


def readings(peer: Any) -> list[Reading]:
    """What one audio frame of it reads."""
    books = peer.config.audio_num_codebooks

    def step() -> None:
        row = peer._embed_audio_codes(mx.zeros((1, books), mx.int32))
        hidden = peer.backbone(mx.zeros((1, 1), mx.int32), input_embeddings=row[None])
        peer._audio_logits(hidden[:, -1])

    return watch(peer, step)
