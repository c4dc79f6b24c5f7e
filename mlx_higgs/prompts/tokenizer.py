"""Text -> token ids in which no control token appears unless the caller asked for it by name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from tokenizers import Tokenizer

from ..types import CheckpointError, InputError, Prompt, Text

_CONTROL = re.compile(r"<\|.*\|>")


def read_tokenizer(folder: str | Path, *, all_special: bool = False) -> Tokenizer:
    """``tokenizer.json`` in ``folder``.

    Args:
        all_special: take all control tokens for special ones, which alone can be escaped, however
            the file has them.

    Raises:
        CheckpointError: the file is missing or cannot be read.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json: copy it from the model's repository."
        )
    try:
        if not all_special:
            return Tokenizer.from_file(str(path))
        content = json.loads(path.read_text(encoding="utf-8"))
        for token in content.get("added_tokens", ()):
            token["special"] = token["special"] or bool(_CONTROL.fullmatch(token["content"]))
        return Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the package raises nothing narrower
        raise CheckpointError(f"{path} is not a tokenizer ({error}).") from error


class PromptTokenizer:
    """A tokenizer for text written by strangers.

    ``tokenizers`` finds control tokens such as ``<|eot_id|>`` inside plain text, so a text could
    close its own turn. Here they are read as ordinary characters, except the ``allowed`` ones;
    the structure of a prompt is put in with :meth:`id`.
    """

    def __init__(self, tokenizer: Tokenizer, allowed: Sequence[str]) -> None:
        """Take over ``tokenizer`` (its ``encode_special_tokens`` is set).

        Args:
            allowed: control tokens that a text may contain; at least one.

        Raises:
            CheckpointError: a control token is filed as an ordinary one, so it cannot be escaped.
        """
        added = tokenizer.get_added_tokens_decoder().values()
        ordinary = [t.content for t in added if _CONTROL.fullmatch(t.content) and not t.special]
        if ordinary:
            raise CheckpointError(
                f'The tokenizer does not mark {ordinary[0]} as special; set "special": true in'
                " tokenizer.json."
            )
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        known = tokenizer.get_added_tokens_decoder()
        self._control = {i: token.content for i, token in known.items() if token.special}
        self._split = re.compile(f"({'|'.join(map(re.escape, allowed))})").split

    def id(self, token: str) -> int:
        """The id of a control token.

        Raises:
            CheckpointError: the tokenizer has no such token.
        """
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise CheckpointError(f"The tokenizer has no token {token}, which this prompt needs.")
        return token_id

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; only the allowed control tokens become control ids.

        Cutting at a control token first changes nothing else: the tokenizer itself does that.

        Raises:
            InputError: ``text`` is not valid Unicode.
            CheckpointError: ``text`` has an allowed token that this tokenizer lacks.
        """
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise InputError(
                "The text has a lone surrogate (half a character): encode it as UTF-8 again."
            )
        ids: list[int] = []
        for index, piece in enumerate(self._split(text)):
            ids += [self.id(piece)] if index % 2 else self._plain(piece)
        return ids

    def control(self, token: int) -> str | None:
        """The name of a control token; None for one that is of words."""
        return self._control.get(token)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids of words -> text; half a character is shown as U+FFFD."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def merged(prompt: Prompt) -> Prompt:
    """Neighbouring runs of ids as one `Text`."""
    joined: Prompt = []
    for is_text, parts in groupby(prompt, lambda part: isinstance(part, Text)):
        if is_text:
            joined.append(Text([i for part in parts if isinstance(part, Text) for i in part.ids]))
        else:
            joined += parts
    return joined
