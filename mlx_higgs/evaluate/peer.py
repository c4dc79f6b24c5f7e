"""mlx-audio's loop on our weights. It is looked for when asked for, and never a dependency."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..models.base import SpeechModel
from ..quantization import Quantization
from ..types import InputError, Prompt
from .contenders import MAX_FRAMES, NEVER, advance
from .reads import Reading, watch

TALKER = "mlx_audio.tts.models.higgs_audio"
UNUSED = "audio_decoder_proj.text_lm_head"  # its logits are asked for and never computed


def peer_version() -> str:
    """Which mlx-audio is installed.

    Raises:
        InputError: none.
    """
    try:
        return version("mlx-audio")
    except PackageNotFoundError as error:
        raise InputError("--peer mlx-audio needs that package: pip install mlx-audio.") from error


def peer_module(name: str) -> Any:
    """A module of mlx-audio by its full name.

    Raises:
        InputError: this release does not have it, or lacks something it needs.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"mlx-audio {peer_version()} cannot be used: {error}.") from error


def peer_talker(model: SpeechModel, quantization: Quantization | None) -> Any:
    """mlx-audio's talker, quantised by its own rule, holding the very arrays of ``model``.

    Call it before ``model`` joins its projections.

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
    if quantization:
        nn.quantize(
            peer,
            group_size=quantization.group_size,
            bits=quantization.bits,
            class_predicate=peer.model_quant_predicate,
        )
    _share(model, peer)
    return peer


def _text_config(config: Any, args: Any) -> Any:
    rope = args.rope
    llama3 = {
        "rope_type": "llama3",
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_position_embeddings,
    }
    return config.HiggsTextConfig(
        hidden_size=args.hidden_size,
        num_hidden_layers=args.num_hidden_layers,
        num_attention_heads=args.num_attention_heads,
        num_key_value_heads=args.num_key_value_heads,
        intermediate_size=args.intermediate_size,
        vocab_size=args.vocab_size,
        rope_theta=rope.theta,
        rms_norm_eps=args.rms_norm_eps,
        rope_scaling=llama3 if rope.kind == "llama3" else None,
    )


def _share(model: Any, peer: Any) -> None:
    ours: Any = tree_flatten(model.parameters())
    theirs: Any = [pair for pair in tree_flatten(peer.parameters()) if UNUSED not in pair[0]]
    shapes = [{(name, array.shape) for name, array in arrays} for arrays in (ours, theirs)]
    if different := sorted(name for name, _ in shapes[0] ^ shapes[1]):
        raise InputError(
            f"mlx-audio stores this talker in another way ({different[0]}): leave --peer out."
        )
    peer.load_weights(ours, strict=False)


def peer_work(peer: Any, model: SpeechModel, prompt: Prompt) -> Callable[[int], None]:
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

    def work(frames: int) -> None:
        advance(rows, frames)

    return work


def peer_readings(peer: Any) -> list[Reading]:
    """What one audio frame of it reads: both FFNs of every layer."""
    args = peer.config
    lookup = peer_module(f"{TALKER}.generation").lookup_audio_embedding

    def step() -> None:
        row = mx.zeros((args.audio_num_codebooks, 1), mx.int32)
        x = lookup(peer.audio_codebook_embeddings, row, args.audio_codebook_size + 2)
        peer(inputs_embeds=x[None], audio_out_mask=mx.ones((1, 1), mx.bool_))

    return [reading for reading in watch(peer, step) if reading.path != UNUSED]
