"""Stage 3: the talker before training: tokenizer, config and random weights, and its conversations.

    python -m convert.demo.talker BUILD

Writes BUILD/start, beside the codec that is there, and {train,valid}.jsonl in two folders:
BUILD/phrases, where it learns its first words and which of them comes next, and BUILD/data, with
sentences and voices to clone. Straight from sentences it learnt to babble, not to read.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from . import texts
from .codec import CODEBOOK_SIZE, CODEBOOKS
from .speech import SCENES, Utterance, read_manifest, write_lines

WIDTH, LAYERS, FFN, HEADS, KV_HEADS, HEAD_WIDTH = 192, 5, 384, 6, 2, 32
ROPE_THETA = 10_000.0  # half of the wavelengths within a minute
CONSTANT, LEVEL, SHARPNESS = 0, 0.8, 2.0  # channel, its value, and how sharply a head looks back
COMMON = 20  # a word read this often gets a token of its own; others are spelled in letters
SPECIALS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|recipient|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|audio_out_bos|>",
    "<|reserved_special_token_6|>",  # right after <|audio_out_bos|>: the rows of a clip's end
    "<|AUDIO|>",
    "<|AUDIO_OUT|>",
    "<|scene_desc_start|>",
    "<|scene_desc_end|>",
    "<|generation_instruction_start|>",
    "<|generation_instruction_end|>",
)
SOUNDS = ("<SE>", "</SE>", "<SE_s>", "</SE_s>", "<SE_e>", "</SE_e>")
PROMPT_WORDS = (
    "system user assistant generate audio following instruction speaker feminine masculine deep"
)
WORD = r"\p{L}+|[^\p{L}]"
UNKNOWN = "[UNK]"  # WordPiece wants one; every byte is known
VALID = 200  # utterances nothing is trained on
COPIES, ENGLISH_COPIES = 4, 1  # conversations an utterance takes part in

# How a conversation begins and how many turns it has. Without a scene the voice can only be heard
# from the first turn: that is cloning.
Shapes = list[tuple[tuple[bool, int], float]]
FIRST: Shapes = [((True, 1), 0.7), ((True, 2), 0.15), ((False, 2), 0.15)]
SHAPES: Shapes = [((True, 1), 0.4), ((True, 2), 0.1), ((False, 2), 0.42), ((False, 3), 0.08)]


def make_tokenizer(read: list[str]) -> Tokenizer:
    """Whole words where they are common, letters elsewhere; capitals and spaces say nothing.

    WordPiece over bytes: a word it does not know becomes known beginnings and ``##`` letters.
    """
    counts = Counter(word for text in read for word in re.findall(r"[a-z]+", text))
    common = sorted(word for word, count in counts.items() if count >= COMMON and len(word) > 1)
    words = dict.fromkeys([*texts.WORDS, *PROMPT_WORDS.split(), *common])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inside = ["##" + letter for letter in alphabet]
    names = [UNKNOWN, *alphabet, *inside, *(word for word in words if len(word) > 1)]
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(), decoders.ByteLevel()])
    specials = [AddedToken(name, special=True, normalized=False) for name in (*SPECIALS, *SOUNDS)]
    tokenizer.add_special_tokens(specials)
    return tokenizer


def make_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """transformers' layout of the v2 config."""

    def id_of(name: str) -> int:
        token_id = tokenizer.token_to_id(name)
        assert token_id is not None
        return token_id

    return {
        "architectures": ["HiggsAudioV2ForConditionalGeneration"],
        "model_type": "higgs_audio_v2",
        "dtype": "float32",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_WIDTH,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": 4096,
        "num_codebooks": CODEBOOKS,
        "codebook_size": CODEBOOK_SIZE + 2,
        "audio_token_id": id_of("<|AUDIO_OUT|>"),
        "audio_bos_token_id": id_of("<|audio_out_bos|>"),
        "audio_delay_token_id": id_of("<|reserved_special_token_6|>"),
        "audio_stream_bos_id": CODEBOOK_SIZE,
        "audio_stream_eos_id": CODEBOOK_SIZE + 1,
        "bos_token_id": id_of("<|begin_of_text|>"),
        "eos_token_id": id_of("<|eot_id|>"),
        "pad_token_id": id_of("<|finetune_right_pad_id|>"),
        "tie_word_embeddings": False,
        "use_cache": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": ROPE_THETA,
            "factor": 32.0,
            "low_freq_factor": 0.125,
            "high_freq_factor": 0.5,
            "original_max_position_embeddings": 1024,
        },
    }


def pronounced(tokenizer: Tokenizer, width: int, rng: np.random.Generator) -> np.ndarray:
    """Text embeddings ``[V, width]``: random, but words that sound alike are alike.

    A word is the sum of a random vector for each of its phonemes at their places: what is learnt
    about a sound is learnt for every word that has it, the rare ones included.
    """
    table = rng.standard_normal((tokenizer.get_vocab_size(), width))
    sounds: dict[tuple[int, str], np.ndarray] = {}
    for word, phonemes in texts.pronunciations().items():
        if (token := tokenizer.token_to_id(word)) is not None:
            for key in enumerate(phonemes):
                sounds.setdefault(key, rng.standard_normal(width))
            table[token] = sum(sounds[key] for key in enumerate(phonemes)) / len(phonemes) ** 0.5
    return (table * 0.2).astype(np.float32)


def make_weights(config: dict[str, Any], embedding: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Normal weights scaled by their fan-in; what writes to the residual stream a bit smaller."""
    rng = np.random.default_rng(seed)
    D, FF = config["hidden_size"], config["intermediate_size"]
    q, kv = (
        config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads")
    )
    audio = config["num_codebooks"] * config["codebook_size"]
    residual = (2 * config["num_hidden_layers"]) ** -0.5

    def normal(rows: int, columns: int, scale: float) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * scale).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": embedding,
        "model.embed_audio_tokens.embed_audio_tokens.weight": normal(audio, D, 0.07),
        "model.norm.weight": np.ones(D, np.float32),
        "audio_lm_head.weight": normal(audio, D, 0.02),
        "text_lm_head.weight": normal(config["vocab_size"], D, 0.02),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = normal(rows, D, D**-0.5)
        tensors[f"{prefix}self_attn.o_proj.weight"] = normal(D, q, q**-0.5 * residual)
        for mlp in ("mlp", "audio_mlp"):
            for name in ("gate", "up"):
                tensors[f"{prefix}{mlp}.{name}_proj.weight"] = normal(FF, D, D**-0.5)
            tensors[f"{prefix}{mlp}.down_proj.weight"] = normal(D, FF, FF**-0.5 * residual)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            for kind in ("", "audio_"):
                tensors[f"{prefix}{kind}{norm}.weight"] = np.ones(D, np.float32)
    look_back(tensors)
    return tensors


def look_back(tensors: dict[str, np.ndarray]) -> None:
    """Let the first layer's first heads begin by attending one and two positions back.

    The next word is the one that stands after the word now said, so a token has to know the one
    before it. Found by training alone this takes longer than all the rest. One channel of every
    embedding is constant, and these heads see nothing else, so rotary positions decide.
    """
    tensors["model.embed_tokens.weight"][:, CONSTANT] = LEVEL
    audio = tensors["model.embed_audio_tokens.embed_audio_tokens.weight"]
    audio[:, CONSTANT] = LEVEL / CODEBOOKS
    half = HEAD_WIDTH // 2
    turns = ROPE_THETA ** -(np.arange(half) / half)
    sharp = np.where(
        np.arange(half) < 3, SHARPNESS, 0.0
    )  # the fastest rotations tell neighbours apart
    prefix = "model.layers.0.self_attn."
    key = tensors[f"{prefix}k_proj.weight"]
    key[:HEAD_WIDTH] = 0
    key[:half, CONSTANT] = sharp
    query = tensors[f"{prefix}q_proj.weight"]
    for head, back in enumerate((1, 2)):
        rows = query[head * HEAD_WIDTH : (head + 1) * HEAD_WIDTH]
        rows[:] = 0
        rows[:half, CONSTANT] = sharp * np.cos(back * turns)
        rows[half:, CONSTANT] = -sharp * np.sin(back * turns)


def conversations(
    utterances: list[Utterance], shapes: Shapes, rng: random.Random
) -> Iterator[dict[str, Any]]:
    """Every utterance once, beside others of the same voice."""
    for voice in SCENES:
        spoken = [u for u in utterances if u.voice == voice]
        waiting = rng.sample(spoken, len(spoken))
        while waiting:
            ((scene, turns),) = rng.choices(*zip(*shapes, strict=True))
            taken = [waiting.pop() for _ in range(min(turns, len(waiting)))]
            yield conversation(taken, SCENES[voice] if scene else None)


def lessons(utterances: list[Utterance], seed: int) -> dict[str, list[dict[str, Any]]]:
    """File -> its conversations."""
    rng = random.Random(seed)
    short = [
        replace(u, text=texts.stopped(u.text.rstrip("."), rng))
        for u in utterances
        if len(u.text.split()) <= texts.PHRASE
    ]
    long = [u for u in utterances if len(u.text.split()) > texts.PHRASE]
    learnt, held = long[:-VALID], long[-VALID:]
    english = [u for u in learnt if texts.is_english(u.text)]
    floor = [u for u in learnt if not texts.is_english(u.text)]
    first = (short[:-VALID], short[-VALID:])
    phrases = [list(conversations(part, FIRST, rng)) for part in first]
    mixed = [
        *(u for _ in range(COPIES) for u in conversations(floor, SHAPES, rng)),
        *(u for _ in range(ENGLISH_COPIES) for u in conversations(english, SHAPES, rng)),
        *conversations(short, SHAPES, rng),
    ]
    return {
        "phrases/train": phrases[0],
        "phrases/valid": phrases[1],
        "data/train": mixed,
        "data/valid": list(conversations(held, SHAPES, rng)),
    }


def conversation(turns: list[Utterance], scene: str | None) -> dict[str, Any]:
    """Boson's ChatML; every answer is trained, the one that lends its voice included."""
    messages = []
    for turn in turns:
        clip = {"type": "audio", "audio_url": f"../{turn.path}"}
        messages += [
            {"role": "user", "content": turn.text},
            {"role": "assistant", "content": clip},
        ]
    return {"messages": messages, "speaker": turns[0].voice} | ({"scene": scene} if scene else {})


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the talker before training.")
    parser.add_argument("build", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    build: Path = arguments.build
    utterances = read_manifest(build)
    tokenizer = make_tokenizer([utterance.text for utterance in utterances])
    config = make_config(tokenizer)
    embedding = pronounced(tokenizer, WIDTH, np.random.default_rng(arguments.seed))
    weights = make_weights(config, embedding, arguments.seed)
    start = build / "start"
    start.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(start / "tokenizer.json"))
    (start / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(weights, start / "model.safetensors", metadata={"format": "pt"})
    for name, lines in lessons(utterances, arguments.seed).items():
        random.Random(arguments.seed).shuffle(lines)
        path = build / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        write_lines(path, lines)
        print(f"{path}: {len(lines)} conversations")
    size = sum(array.size for array in weights.values())
    print(f"{size / 1e6:.2f} M weights, {config['vocab_size']} tokens")


if __name__ == "__main__":
    main()
