"""A tiny tokenizer of v2's kind: Llama-3's pre-tokeniser, byte-level BPE, all control tokens.

Control tokens keep the real order, counted from the end of the vocabulary, not from 128,000.
"""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from mlx_higgs.types import Audio, Prompt, Text

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Merges that would show a wrong cut: line ends that join what is before or after them.
MERGED = ["\n\n", "\n\n\n", " \n", ".\n", ".\n\n", ":\n", " [", "SPEAKER", " the", "one", " one"]
CONTROL_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|audio_bos|>",
    "<|audio_eos|>",
    "<|audio_out_bos|>",
    "<|reserved_special_token_6|>",
    "<|AUDIO|>",
    "<|AUDIO_OUT|>",
    "<|recipient|>",
    "<|scene_desc_start|>",
    "<|scene_desc_end|>",
    "<|generation_instruction_start|>",
    "<|generation_instruction_end|>",
    "<SE>",
    "</SE>",
    "<SE_s>",
    "</SE_s>",
    "<SE_e>",
    "</SE_e>",
    "<|reserved_special_token_20|>",
]
PLACEHOLDERS = {True: "<|AUDIO_OUT|>", False: "<|AUDIO|>"}  # by Audio.spoken


def toy_tokenizer(control_tokens: list[str] = CONTROL_TOKENS, special: bool = True) -> Tokenizer:
    """The tokenizer; without some ``control_tokens``, or with them filed as ordinary ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = list(alphabet), []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for word in MERGED:
        symbols = byte_level.pre_tokenize_str(word)[0][0]
        for end in range(2, len(symbols) + 1):
            if symbols[:end] not in pieces:
                pieces.append(symbols[:end])
                merges.append((symbols[: end - 1], symbols[end - 1]))
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in control_tokens])
    return tokenizer


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that must exist."""
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return found


def placeholder_ids(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """Boson's ``input_ids``: one placeholder for each clip."""
    clip = {spoken: token_id(tokenizer, name) for spoken, name in PLACEHOLDERS.items()}
    return [
        token
        for part in prompt
        for token in (part.ids if isinstance(part, Text) else [clip[part.spoken]])
    ]


def expanded_ids(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    """transformers' ``input_ids``: a placeholder for each delayed row of a clip.

    BOS + T frames + EOS, delayed over K codebooks, are T + 2 + (K - 1) rows; the last K - 1 have
    an id of their own.
    """
    row = token_id(tokenizer, "<|AUDIO_OUT|>")
    ending = token_id(tokenizer, "<|reserved_special_token_6|>")

    def rows(clip: Audio) -> list[int]:
        T, K = clip.codes.shape
        return [row] * (T + 2) + [ending] * (K - 1)

    return [
        token for part in prompt for token in (part.ids if isinstance(part, Text) else rows(part))
    ]
