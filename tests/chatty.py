"""The demo with a text head that writes by heart: words, speech, words, and perhaps speech again.

The head is fitted to the hidden states of such answers after a few questions; the speech is the
demo's own. Whether an answer ends after its second words, or speaks once more, is drawn.
"""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_higgs import HiggsAudioServer
from mlx_higgs.sources import DEMO
from mlx_higgs.types import Audio, Prompt, Text

FIRST, SECOND = "all right", "good bye"  # the words of the answer
QUESTIONS = ("one", "two three", "good morning", "what is it", "hello there")
ENOUGH = 12.0  # a logit that leaves nothing to the others


def write_chatty(folder: Path) -> Path:
    """A checkpoint: the demo's files, with the head among its weights."""
    folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(DEMO / name, folder / name)
    generation = json.loads((DEMO / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(generation | {"chats": True}))
    (folder / "codec").symlink_to(DEMO / "codec")
    weights = mx.load(str(DEMO / "model.safetensors"))
    assert isinstance(weights, dict)
    mx.save_safetensors(
        str(folder / "model.safetensors"),
        {**weights, "text_lm_head.weight": mx.array(_head()).astype(mx.float16)},
    )
    return folder


@cache
def _head() -> np.ndarray:
    """Weights ``[vocab, D]``: ridge regression from hidden states to the next id."""
    server = HiggsAudioServer.from_pretrained()
    model, prompts = server.higgs.model, server.higgs.prompts
    said = [_codes(server, seed) for seed in range(3)]
    states, wanted = [], []
    for index, question in enumerate(QUESTIONS):
        codes = said[index % 3], said[(index + 1) % 3]
        opening = prompts.converse([prompts.turn("user", [question])])
        answer, targets = _answer(opening.marks, prompts, codes)
        x, is_audio = model.embed_prompt([*opening.prompt, *answer])
        h = np.array(model.hidden(x, model.make_cache(), is_audio).astype(mx.float32))[0]
        places = np.flatnonzero(~is_audio[0])[-len(targets) :]
        states.append(h[places])
        wanted += targets
    h, target = np.concatenate(states), np.zeros((len(wanted), model.args.vocab_size), np.float32)
    for place, ids in enumerate(wanted):
        target[place, ids] = ENOUGH
    ridge = 1e-4 * np.trace(h.T @ h) / h.shape[1] * np.eye(h.shape[1])
    return np.linalg.solve(h.T @ h + ridge, h.T @ target).T.astype(np.float32)


def _codes(server: HiggsAudioServer, seed: int) -> mx.array:
    codes = server.generate("one two", seed=seed, guards=False).codes
    assert codes is not None
    return mx.array(codes)


def _answer(marks, prompts, codes) -> tuple[Prompt, list[list[int]]]:
    """The answer as it follows a prompt, and the ids wanted at each position of words.

    Nothing is asked at ``<|audio_out_bos|>``: what comes after it is speech.
    """
    first, second = (prompts._tokens.encode(words) for words in (FIRST, SECOND))
    parts = [
        Text([*first, marks.opens]),
        Audio(codes[0]),
        Text([marks.closes, *second, marks.opens]),
        Audio(codes[1]),
        Text([marks.closes, *second]),
    ]
    ending = [prompts._tokens.id("<|eot_id|>"), marks.opens]
    words = [[word] for word in second]
    spoken = [[], *words, ending]
    return parts, [*([word] for word in first), [marks.opens], *spoken, *spoken]
