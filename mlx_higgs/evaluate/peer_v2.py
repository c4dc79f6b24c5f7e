"""mlx-audio's v2 loop on our weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ..models.base import SpeechModel
from ..quantization import Quantization
from ..types import Prompt
from .contenders import MAX_FRAMES, NEVER, advance
from .peer import give_weights, peer_module, rope_scaling
from .reads import Reading, watch

TALKER = "mlx_audio.tts.models.higgs_audio"
UNUSED = "audio_decoder_proj.text_lm_head"  # its logits are asked for and never computed


def talker(model: SpeechModel, quantization: Quantization | None) -> Any:
    """Its talker, holding the arrays of ours.

    Raises:
        InputError: the two talkers do not have the same weights.
    """
    args = model.args
    config = peer_module(f"{TALKER}.config")
    peer = peer_module(f"{TALKER}.model").Model(
        config.HiggsAudioConfig(
            text_config=_text_config(config, args),
            audio_num_codebooks=args.num_codebooks,
            audio_codebook_size=args.codebook_vocab - 2,
            audio_stream_bos_id=args.audio_stream_bos_id,
            audio_stream_eos_id=NEVER,
            audio_dual_ffn_layers=list(range(args.num_hidden_layers)),
        )
    )
    give_weights(model, peer, quantization, unused=UNUSED)
    return peer


def _text_config(config: Any, args: Any) -> Any:
    return config.HiggsTextConfig(
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_key_value_heads,
        intermediate_size=args.intermediate_size,
        vocab_size=args.vocab_size,
        rope_theta=args.rope.theta,
        rms_norm_eps=args.rms_norm_eps,
        rope_scaling=rope_scaling(args.rope),
    )


def work(peer: Any, model: SpeechModel, prompt: Prompt) -> Callable[[int], None]:
    """Its own loop, unmodified, on the same prompt, with the sampling that it defaults to."""
    x, is_audio = model.embed_prompt(prompt)
    mx.eval(x)
    rows = peer._generate_raw_frames(
        x,
        mx.array(is_audio),
        max_new_frames=MAX_FRAMES,
        temperature=0.7,
        top_p=0.95,
        top_k=None,
        ras_win_len=7,
        ras_max_repeat=2,
        sampling_warmup_frames=0,
    )

    return lambda frames: advance(rows, frames)


def readings(peer: Any) -> list[Reading]:
    """What one audio frame of it reads: both FFNs of every layer."""
    args = peer.config
    lookup = peer_module(f"{TALKER}.generation").lookup_audio_embedding

    def step() -> None:
        row = mx.zeros((args.audio_num_codebooks, 1), mx.int32)
        x = lookup(peer.audio_codebook_embeddings, row, args.audio_codebook_size + 2)
        peer(inputs_embeds=x[None], audio_out_mask=mx.ones((1, 1), mx.bool_))

    return [reading for reading in watch(peer, step) if reading.path != UNUSED]
