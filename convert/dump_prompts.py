"""Write tests/golden/prompts_v2.json: prompts as Boson's own script builds them.

    git clone https://github.com/boson-ai/higgs-audio CHECKOUT
    python convert/dump_prompts.py CHECKOUT tests/golden/prompts_v2.json

Runs ``main`` of CHECKOUT/examples/generation.py with a client whose model records the token ids
it is given. Needs tokenizers, click and PyYAML; whatever else the script imports (torch included)
is replaced by a stand-in.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.abc
import importlib.machinery
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]
from toy_tokenizer import toy_tokenizer  # noqa: E402  # pyright: ignore[reportMissingImports]

STAND_INS = (
    "torch",
    "torchaudio",
    "transformers",
    "soundfile",
    "langid",
    "jieba",
    "loguru",
    "librosa",
    "dacite",
    "pandas",
    "tqdm",
    "boson_multimodal.serve",
    "boson_multimodal.model",
    "boson_multimodal.data_collator",
    "boson_multimodal.audio_processing",
)

SCENE = "Two friends sit by a river; a mill turns slowly.\nIt is evening."
REFERENCES = {  # name -> transcript, as found in a file
    "ada": "\n The kettle sang before anyone was awake.\n",
    "ben": "Nobody counts the steps, 【yet】 everyone climbs them。",
    "cleo": "One last page, and then the lamp goes out!",
}
PROFILES = {
    "calm": "Female, unhurried, low pitch; speaks close to the microphone.",
    "gruff": "Male, rough voice: short sentences.",
}
TEXTS = {
    "plain": "The ferry leaves at nine. Bring a warm coat, please.",
    "no ending": "we walked the whole way home",
    "edges": "  \n\n  First line, with   wide  gaps.\t\n\n\n   Second line\r\n third\u3000line \n ",
    "chinese": "你好，世界。今天（星期一）的「天气」：很好！真的吗？"
    "《好》、是——的…“嗯”‘哦’·『对』；【行】",
    "curly": "“It’s late,” she said — ‘very’ late…",
    "units": "Water boils at 212°F (100°C), not at 40.45 °F.",
    "sounds": "That is funny [laugh] [cough] [applause] [cheering] [music] now stop [cough]",
    "spans": "[music start] la la [music end] [sing start] do re mi [sing end] [humming start] mm"
    " [humming end]",
    "wide tags": "Ha 【laugh】 and （music） and [unknown tag]",
    "sound markup": "<SE>[Door]</SE> then <SE_s>[Rain]</SE_s> drip <SE_e>[Rain]</SE_e>",
    "emoji and quotes": 'Say "yes" 👍🏽 or ﬁne, cafe\u0301',
    "comma": "and then,",
    "empty": "",
    "dots": "…",
    "one speaker": "[SPEAKER3] I talk to myself.",
    "two speakers": "[SPEAKER0] Are you there?\n\n[SPEAKER1] Yes, (almost).\n[SPEAKER0] Good",
    "wide speakers": "【SPEAKER0】 Hello. 【SPEAKER1】 Hi.",
    "eleven speakers": "\n".join(f"[SPEAKER{i}] Number {i} speaks." for i in range(11)),
}
ARGUMENTS = {  # name -> options of the script
    "smart": {},
    "smart scene": {"scene_prompt": SCENE},
    "clone": {"ref_audio": "ada"},
    "clone scene": {"ref_audio": "ada", "scene_prompt": f"\n{SCENE}  "},
    "clone two": {"ref_audio": "ada,ben"},
    "clone three scene": {"ref_audio": "ada,ben,cleo", "scene_prompt": SCENE},
    "in system": {"ref_audio": "ben", "ref_audio_in_system_message": True},
    "in system two scene": {
        "ref_audio": "ada,cleo",
        "ref_audio_in_system_message": True,
        "scene_prompt": SCENE,
    },
    "profile": {"ref_audio": "profile:calm"},
    "profiles scene": {"ref_audio": "profile:calm,profile:gruff", "scene_prompt": SCENE},
    "mixed": {"ref_audio": "profile:gruff,ada"},
    "mixed scene": {"ref_audio": "ada,profile:calm,ben", "scene_prompt": SCENE},
    "turns": {"chunk_method": "speaker"},
    "turns scene buffer": {
        "chunk_method": "speaker",
        "scene_prompt": SCENE,
        "generation_chunk_buffer_size": 2,
    },
    "turns clone buffer": {
        "chunk_method": "speaker",
        "ref_audio": "ada,ben",
        "generation_chunk_buffer_size": 1,
    },
    "words clone": {"chunk_method": "word", "chunk_max_word_num": 4, "ref_audio": "cleo"},
}
GENERATE = "<|start_header_id|>assistant<|end_header_id|>\n\n"
FREE_SYSTEMS = [
    "Generate audio following instruction.\n\n<|scene_desc_start|>\nSPEAKER0: alto;husky\n"
    "<|scene_desc_end|>",
    " Speak like a newsreader.\n",
    "<|generation_instruction_start|>\nKeep it under ten seconds.\n"
    "<|generation_instruction_end|>\n\n<SE>[Music]</SE>",
]


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports every module of ``STAND_INS`` as an object that agrees to everything."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if any(f"{fullname}.".startswith(f"{name}.") for name in STAND_INS):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> ModuleType:
        module: Any = MagicMock(name=spec.name)
        module.__spec__, module.__path__, module.__name__ = spec, [], spec.name
        if spec.name == "torch":
            module.LongTensor = list
            module.Tensor = type("Tensor", (), {})
            module.inference_mode = lambda: lambda function: function
        if spec.name == "tqdm":
            module.tqdm = lambda items, **_: items
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


class ToyTokenizer:
    """The two methods Boson's code calls, as transformers answers them."""

    def __init__(self) -> None:
        self._tokenizer = toy_tokenizer()

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Any) -> str:
        return ""


@dataclass
class NoBatch:
    """What the recording collator returns: fields would be moved to a device."""


class Recorder:
    """Runs the script's ``main`` in ``folder`` and keeps what it gives its model."""

    def __init__(self, script: Any, folder: Path) -> None:
        self._script, self._folder = script, folder
        self._context, self._chunks = script.prepare_generation_context, script.prepare_chunk_text
        script.CURR_DIR = str(folder)
        script.prepare_generation_context = self._keep_context
        script.prepare_chunk_text = self._keep_chunks
        script.HiggsAudioModelClient.__init__ = lambda client, **_: self._equip(client)

    def run(self, text: str, options: dict[str, Any]) -> None:
        """Sets ``speakers``, ``normalized``, ``chunks`` and ``ids`` (one list for each chunk)."""
        self.ids: list[list[int]] = []
        scene = self._folder / "scene.txt"
        scene.write_text(options.get("scene_prompt", ""), encoding="utf-8")
        arguments = {option.name: option.default for option in self._script.main.params}
        arguments |= options | {"transcript": text, "scene_prompt": str(scene)}
        self._script.main.callback(**arguments)

    def _equip(self, client: Any) -> None:
        client._device, client._use_static_kv_cache, client.kv_caches = "cpu", False, None
        client._max_new_tokens, client._config = 1, MagicMock()
        client._audio_tokenizer, client._tokenizer = MagicMock(), ToyTokenizer()
        client._collator = self._keep_ids
        client._model = SimpleNamespace(generate=lambda **_: ([MagicMock()], [MagicMock()]))

    def _keep_ids(self, samples: list[Any]) -> NoBatch:
        self.ids.append(list(samples[0].input_ids))
        return NoBatch()

    def _keep_context(self, **arguments: Any) -> Any:
        self.speakers = arguments["speaker_tags"]
        return self._context(**arguments)

    def _keep_chunks(self, text: str, **arguments: Any) -> list[str]:
        self.normalized, self.chunks = text, self._chunks(text, **arguments)
        return self.chunks


def cases() -> list[tuple[str, str]]:
    """Pairs of a text's and a mode's name: every text once, and some in every mode."""
    some = ["plain", "edges", "two speakers"]
    pairs = [(text, "smart") for text in TEXTS if text not in some]
    pairs += [("eleven speakers", mode) for mode in ("smart scene", "turns scene buffer")]
    return pairs + [(text, mode) for mode in ARGUMENTS for text in some]


def golden_case(recorder: Recorder, text: str, mode: str) -> dict[str, Any]:
    """One run of the script, and what our builder needs to repeat it."""
    options = ARGUMENTS[mode]
    recorder.run(TEXTS[text], options)
    kept = options.get("generation_chunk_buffer_size") or len(recorder.chunks)
    chunks = [
        {"text": chunk, "history": recorder.chunks[max(0, i - kept) : i], "ids": ids}
        for i, (chunk, ids) in enumerate(zip(recorder.chunks, recorder.ids, strict=True))
    ]
    return {
        "name": f"{mode} / {text}",
        "text": TEXTS[text],
        "normalized": recorder.normalized,
        "speakers": recorder.speakers,
        "voices": [voice(name) for name in options.get("ref_audio", "").split(",") if name],
        "scene": options.get("scene_prompt"),
        "references_in_system": options.get("ref_audio_in_system_message", False),
        "chunks": chunks,
    }


def voice(name: str) -> dict[str, str]:
    """A reference's transcript or a profile's description."""
    if name.startswith("profile:"):
        return {"description": PROFILES[name.removeprefix("profile:")]}
    return {"transcript": REFERENCES[name]}


def conversations() -> list[dict[str, Any]]:
    """Turns that no option of the script makes: ``[role, [words, or null for a clip]]``."""
    plain, edges, answer = TEXTS["plain"], TEXTS["edges"], ["assistant", [None]]
    reference = [["user", [REFERENCES["ada"].strip()]], answer]
    found = [[["user", [edges]]], [*reference, ["user", [edges]]], [*reference, answer]]
    for system in FREE_SYSTEMS:
        found += [[["system", [system]], ["user", [plain]]]]
        found += [[["system", [system]], *reference, ["user", [edges]]]]
    mixed = ["user", ["\n Listen: ", None, "\n\n", None, " and repeat\n", "\nslowly."]]
    found += [[["system", ["one", None, "\n\none"]], mixed, answer, answer, ["user", [plain]]]]
    return [{"turns": turns, "ids": conversation_ids(turns)} for turns in found]


def conversation_ids(turns: list[Any]) -> list[int]:
    """Ids of Boson's ``prepare_chatml_sample``, and the opening of the answer."""
    types = importlib.import_module("boson_multimodal.data_types")
    prepare = importlib.import_module("boson_multimodal.dataset.chatml_dataset")
    clip = types.AudioContent(audio_url="")
    messages = [types.Message(role, [part or clip for part in parts]) for role, parts in turns]
    ids = prepare.prepare_chatml_sample(types.ChatMLSample(messages), ToyTokenizer())[0]
    return ids + ToyTokenizer().encode(GENERATE, add_special_tokens=False)


def write_references(folder: Path) -> None:
    """A folder of references as the script expects it; the clips are never read."""
    (folder / "voice_prompts").mkdir()
    for name, transcript in REFERENCES.items():
        (folder / "voice_prompts" / f"{name}.txt").write_text(transcript, encoding="utf-8")
        (folder / "voice_prompts" / f"{name}.wav").touch()
    profiles = json.dumps({"profiles": PROFILES})  # JSON is YAML
    (folder / "voice_prompts" / "profile.yaml").write_text(profiles, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Dump prompts of Boson's script.")
    parser.add_argument("checkout", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    sys.meta_path.insert(0, StandIn())
    sys.path[:0] = [str(arguments.checkout), str(arguments.checkout / "examples")]
    script = importlib.import_module("generation")
    with tempfile.TemporaryDirectory() as folder:
        write_references(Path(folder))
        recorder = Recorder(script, Path(folder))
        found = [golden_case(recorder, text, mode) for text, mode in cases()]
    git = ["git", "-C", str(arguments.checkout), "rev-parse", "HEAD"]
    commit = subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    golden = {
        "made by": f"convert/dump_prompts.py, boson-ai/higgs-audio {commit}",
        "cases": found,
        "conversations": conversations(),
    }
    text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
    arguments.output.write_text(
        re.sub(r'{"(name|turns)"', r'\n{"\1"', text) + "\n", encoding="utf-8"
    )
    print(f"{len(found)} cases -> {arguments.output}")


if __name__ == "__main__":
    main()
