"""Laws of kept voices: nothing changes but the work, and no file can hurt."""

from __future__ import annotations

import dataclasses
import gc
import os
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from checkpoints import random_checkpoint
from mlx.utils import tree_map
from tiny_model import tiny_model

from mlx_higgs import HiggsAudioServer, frames, prefix
from mlx_higgs.frames import Rows
from mlx_higgs.models.snapshot import Snapshot
from mlx_higgs.models.v2 import Model
from mlx_higgs.prefix import (
    ClipCodes,
    Prefix,
    PrefixCache,
    fingerprint,
    positions,
    split,
    voice_folder,
)
from mlx_higgs.quantization import Quantization
from mlx_higgs.sampling import SamplingParams
from mlx_higgs.server import SpeechJob, SpeechRequest
from mlx_higgs.sources import DEMO
from mlx_higgs.store import Folder
from mlx_higgs.types import Audio, Prompt, Text

OTHER = "ab" * 32  # a key
PROFILE = "profile:deep and calm"


def speaker(seed: int, **changes) -> Model:
    """A talker that never ends by itself."""
    model = tiny_model(seed, **changes)
    eos = mx.arange(model.args.codebook_vocab) == model.args.audio_stream_eos_id
    logits = model.audio_logits
    model.audio_logits = lambda h: mx.where(eos, -1e9, logits(h))
    return model


def clip(seed: int, length: int = 30, spoken: bool = True) -> Audio:
    return Audio(mx.random.randint(0, 20, (length, 4), key=mx.random.key(seed)), spoken)


def voice(seed: int) -> Prompt:
    """A profile with a clip, and a reference that speaks."""
    return [Text([1, 2]), clip(seed, 12, spoken=False), Text([7, 8, 9]), clip(seed + 1)]


def rows_of(model: Model, prompt: Prompt, seed: int, kept: PrefixCache | None = None):
    found = kept.get(prompt) if kept else None
    return np.stack(
        list(Rows(model, prompt, SamplingParams(max_frames=50, seed=seed), prefix=found))
    )


def counted(model: Model, monkeypatch) -> list[int]:
    """How many positions each forward had."""
    counts: list[int] = []
    hidden = model.hidden

    def spy(x, *arguments, **options):
        counts.append(x.shape[1])
        return hidden(x, *arguments, **options)

    monkeypatch.setattr(model, "hidden", spy)
    return counts


def prefix_of(kept: PrefixCache, prompt: Prompt) -> Prefix:
    found = kept.get(prompt)
    assert found is not None
    return found


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


# -- a voice ------------------------------------------------------------------------------------


def test_a_kept_voice_changes_no_row(seed: int, tmp_path: Path):
    """Just prefilled, from memory, from a file, after each other, and with none at all."""
    model = speaker(seed)
    prompt = [*voice(seed), Text([3, 1, 4, 1, 5])]
    whole = rows_of(model, prompt, seed)
    assert len(whole) == 50
    for folder in (None, tmp_path):
        kept = PrefixCache(model, "", folder=folder)
        for _ in range(2):
            assert np.array_equal(rows_of(model, prompt, seed, kept), whole)
    assert len(files(tmp_path)) == 1
    assert np.array_equal(
        rows_of(model, prompt, seed, PrefixCache(model, "", folder=tmp_path)), whole
    )


def test_a_file_holds_what_was_computed_bit_for_bit(seed: int, tmp_path: Path):
    model = speaker(seed)
    model.set_dtype(mx.bfloat16)
    made = prefix_of(PrefixCache(model, "", folder=tmp_path), voice(seed))
    read = prefix_of(PrefixCache(model, "", folder=tmp_path), voice(seed))
    assert (read.parts, read.positions, read.nbytes) == (made.parts, made.positions, made.nbytes)
    for layer, other in zip(read.cache, made.cache, strict=True):
        assert layer.keys is not None
        assert layer.keys.dtype == mx.bfloat16
        assert mx.array_equal(layer.keys, other.keys)
        assert mx.array_equal(layer.values, other.values)


def test_a_second_request_prefills_its_text_alone(seed: int, tmp_path: Path, monkeypatch):
    model = speaker(seed)
    counts = counted(model, monkeypatch)
    length = positions(voice(seed), model.delay)
    kept = PrefixCache(model, "", folder=tmp_path)

    def prefilled(ids: list[int], kept: PrefixCache) -> list[int]:
        counts.clear()
        rows_of(model, [*voice(seed), Text(ids)], seed, kept)
        return [count for count in counts if count > 1]

    assert prefilled([3, 1, 4], kept) == [length, 3]
    assert prefilled([1, 5, 9, 2], kept) == [4]
    assert prefilled([6, 5], PrefixCache(model, "", folder=tmp_path)) == [2]
    kept.clear()
    assert prefilled([6, 5], kept) == [2]
    assert prefilled([6, 5], PrefixCache(model, "")) == [length, 2]


def test_what_is_kept_takes_no_more_than_its_positions(seed: int):
    model = speaker(seed, num_key_value_heads=1, head_dim=64)
    found = prefix_of(PrefixCache(model, ""), voice(seed))
    args = model.args
    assert found.positions == positions(voice(seed), model.delay) == 2 + 12 + 5 + 3 + 30 + 5
    assert found.nbytes == 2 * args.num_hidden_layers * args.head_dim * found.positions * 4
    before = active()
    again = prefix_of(PrefixCache(model, ""), voice(seed))
    assert active() - before < 1.2 * again.nbytes  # MLX counts in pages


def active() -> int:
    """Bytes in use once nothing is under way."""
    mx.synchronize()
    gc.collect()
    return mx.get_active_memory()


def test_a_request_leaves_what_is_kept_as_it_was(seed: int):
    """Two requests grow copies of their own, whatever their lengths come to."""
    model = speaker(seed)
    for length in (30, 256 - 12):  # the second fills a bucket to the last position
        found = prefix_of(PrefixCache(model, ""), [Text([5] * 6), clip(seed, length)])
        before = [np.array(array) for c in found.cache for array in (c.keys, c.values)]
        for ids in ([1], [2] * 300):
            caches = found.start()
            x, is_audio = model.embed_prompt([Text(ids)])
            mx.eval(model.hidden(x, caches, is_audio))
            assert caches[0].offset == found.positions + len(ids)
            after = [np.array(array) for c in found.cache for array in (c.keys, c.values)]
            assert all(map(np.array_equal, before, after))
            assert {c.offset for c in found.cache} == {found.positions}
            assert found.positions == length + 11


def test_ras_looks_back_on_clips_that_were_not_prefilled_now(seed: int, monkeypatch):
    model, seen = tiny_model(seed), []
    monkeypatch.setattr(frames, "start_window", lambda rows, *_: seen.append(np.array(rows)))
    kept, prompt = PrefixCache(model, ""), [*voice(seed), Text([3])]
    for found in (None, kept.get(prompt), kept.get(prompt)):
        list(Rows(model, prompt, SamplingParams(max_frames=1, seed=seed), prefix=found))
    clips = model.delay.apply(prompt[3].codes)
    for rows in seen:
        assert np.array_equal(rows[:-1], np.array(clips))
    assert len(seen) == 3


def test_the_voice_ends_with_its_last_clip(seed: int):
    text, heard = Text([1]), clip(seed)
    assert split([text]) == 0
    assert split([heard, text]) == 1
    assert split([text, heard, text, heard, text, text]) == 4
    assert PrefixCache(tiny_model(seed), "").get([text, text]) is None


# -- which voice ----------------------------------------------------------------------------------


def test_every_part_of_the_content_counts(seed: int):
    model = tiny_model(seed)
    kept = PrefixCache(model, "weights")
    codes = clip(seed).codes
    other = mx.where(mx.arange(30)[:, None] == 29, (codes + 1) % 20, codes)  # the last frame
    voices: list[Prompt] = [
        [Text([1, 2]), Audio(codes)],
        [Text([1, 2]), Audio(other)],
        [Text([1, 2]), Audio(codes[:-1])],
        [Text([1, 2]), Audio(codes, spoken=False)],
        [Text([1, 3]), Audio(codes)],
        [Text([1]), Text([2]), Audio(codes)],
        [Text([1, 2]), Text(np.array(codes).reshape(-1).tolist())],
        [Text([1, 2]), Audio(codes), Audio(codes)],
    ]
    keys = [kept.key(parts) for parts in voices]
    keys.append(PrefixCache(model, "other weights").key(voices[0]))
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)
    assert kept.key([Text([1, 2]), Audio(codes.astype(mx.uint32))]) == keys[0]
    assert prefix._digest("ab", "c") != prefix._digest("a", "bc")


def test_every_file_of_the_checkpoints_counts(seed: int, tmp_path: Path):
    model, adapter, codec = (tmp_path / name for name in ("model", "adapter", "codec"))
    random_checkpoint(model, seed)
    for folder, name in ((adapter, "adapters"), (codec, "model")):
        folder.mkdir()
        mx.save_safetensors(str(folder / f"{name}.safetensors"), {"a": mx.zeros(8)})
        (folder / "config.json").write_text("{}")

    def found(quantize=None, with_adapter: Path | None = adapter) -> str:
        return fingerprint(model, quantize, with_adapter, codec)

    seen = [found(), found(Quantization(8)), found(Quantization(4)), found(with_adapter=None)]
    step = adapter / "0000100_adapters.safetensors"
    mx.save_safetensors(str(step), {"a": mx.zeros(8)})
    seen += [found(), found(with_adapter=step)]
    for path in (model / "model.safetensors", codec / "model.safetensors"):
        before = path.stat()
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # written anew, alike
        seen.append(found())
    (model / "config.json").write_text((model / "config.json").read_text() + " ")
    seen.append(found())
    mx.save_safetensors(str(adapter / "adapters.safetensors"), {"b": mx.zeros(8)})
    seen.append(found())
    (codec / "model.pth").write_bytes(b"x")
    seen.append(found())
    assert len(set(seen)) == len(seen)
    assert found() == seen[-1]


def test_a_link_to_a_checkpoint_is_that_checkpoint(seed: int, tmp_path: Path):
    """The hub's snapshots are links to files named by their content."""
    folder = random_checkpoint(tmp_path / "model", seed)
    (tmp_path / "snapshot").mkdir()
    for path in files(folder):
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert fingerprint(tmp_path / "snapshot") == fingerprint(folder)


def test_how_the_weights_are_held_counts(seed: int):
    found = {str(prefix.stored_as(tiny_model(seed)))}
    for bits in (4, 8):
        model = tiny_model(seed)
        mx.eval(model.parameters())
        model.layers[0].mlp.gate_proj = model.layers[0].mlp.gate_proj.to_quantized(32, bits)
        found.add(str(prefix.stored_as(model)))
    half = tiny_model(seed)
    half.set_dtype(mx.bfloat16)
    found.add(str(prefix.stored_as(half)))
    assert len(found) == 4


def test_changed_weights_start_anew_and_leave_the_files_alone(seed: int, tmp_path: Path):
    model, prompt = speaker(seed), [*voice(seed), Text([3])]
    kept = PrefixCache(model, "", folder=tmp_path)
    before = rows_of(model, prompt, seed, kept)
    model.update(tree_map(lambda array: array * 1.1, model.parameters()))
    after = rows_of(model, prompt, seed, kept)
    assert np.array_equal(after, rows_of(model, prompt, seed))
    assert not np.array_equal(after, before)
    rows_of(model, [*voice(seed + 5), Text([3])], seed, kept)
    assert len(files(tmp_path)) == 1


# -- the folder -----------------------------------------------------------------------------------


DAMAGES = {
    "empty": lambda raw: b"",
    "cut in the header": lambda raw: raw[:40],
    "cut in the data": lambda raw: raw[:-5],
    "one bit": lambda raw: raw[:-9] + bytes([raw[-9] ^ 4]) + raw[-8:],
    "zeros": lambda raw: bytes(len(raw)),
    "noise": lambda raw: bytes(np.random.default_rng(0).integers(0, 256, len(raw), np.uint8)),
    "text": lambda raw: b"<html>not found</html>",
    "length": lambda raw: b"\xff" * 8 + raw[8:],
    "version": lambda raw: raw.replace(b"version 1", b"version 0"),
    "longer": lambda raw: raw + b"more",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again(seed: int, tmp_path: Path, damage: str):
    model, prompt = speaker(seed), [*voice(seed), Text([3])]
    whole = rows_of(model, prompt, seed, PrefixCache(model, "", folder=tmp_path))
    [path] = files(tmp_path)
    raw = path.read_bytes()
    assert DAMAGES[damage](raw) != raw
    path.write_bytes(DAMAGES[damage](raw))
    again = rows_of(model, prompt, seed, PrefixCache(model, "", folder=tmp_path))
    assert np.array_equal(again, whole)
    if damage != "longer":  # which does not hurt
        assert path.read_bytes() == raw
    assert files(tmp_path) == [path]


def test_a_file_of_something_else_is_made_again(seed: int, tmp_path: Path):
    """Whole files, rightly named, from another model or for another key."""
    model = speaker(seed)
    kept = PrefixCache(model, "", folder=tmp_path)
    key = kept.key(voice(seed))
    found = prefix_of(kept, voice(seed))
    tensors = {
        f"{i}.{n}": getattr(c, n) for i, c in enumerate(found.cache) for n in ("keys", "values")
    }
    strangers = [
        {name: array[..., :-1, :] for name, array in tensors.items()},
        {name: array.astype(mx.int32) for name, array in tensors.items()},
        {name: array for name, array in tensors.items() if name[0] == "0"},
        {**tensors, "2.keys": tensors["0.keys"]},
        {},
    ]
    folder = Folder(tmp_path, 1 << 30)
    for stranger in strangers:
        folder.write(key, stranger)
        assert mx.array_equal(
            prefix_of(PrefixCache(model, "", folder=tmp_path), voice(seed)).cache[1].values,
            tensors["1.values"],
        )
        replaced = folder.read(key)
        assert replaced is not None
        assert replaced.keys() == tensors.keys()
        assert replaced["0.keys"].shape == tensors["0.keys"].shape
    (tmp_path / f"{key}.safetensors").rename(tmp_path / f"{OTHER}.safetensors")
    assert folder.read(OTHER) is None


def test_a_folder_that_takes_nothing_is_told_once(seed: int, tmp_path: Path):
    model = speaker(seed)
    (tmp_path / "file").write_text("in the way")
    kept = PrefixCache(model, "", folder=tmp_path / "file" / "voices")
    with pytest.warns(RuntimeWarning, match=r"file.voices.*computed every time"):
        first = rows_of(model, [*voice(seed), Text([3])], seed, kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept.get([*voice(seed + 7), Text([3])])
        PrefixCache(model, "", folder=tmp_path / "file" / "voices").get(voice(seed))
    assert np.array_equal(rows_of(model, [*voice(seed), Text([3])], seed), first)


def test_where_voices_go(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MLX_HIGGS_CACHE", str(tmp_path / "mine"))
    assert voice_folder("auto", DEMO) is None  # too small to gain
    assert voice_folder(None, DEMO) is None
    assert voice_folder("~/voices", DEMO) == tmp_path / "voices"
    assert voice_folder(Path("auto"), DEMO) == Path("auto")
    monkeypatch.setattr(prefix, "WORTH_A_FILE", 1)
    assert voice_folder("auto", DEMO) == tmp_path / "mine" / "voices"


# -- clips and requests ---------------------------------------------------------------------------


class Ears:
    """Hears in a clip what its last samples are; counts."""

    num_codebooks, codebook_size = 4, 20

    def __init__(self):
        self.heard = 0

    def encode(self, wave: np.ndarray) -> mx.array:
        self.heard += 1
        return mx.array((wave[-8:].reshape(2, 4) * 10).astype(np.int32))


def test_a_clip_is_heard_once_and_by_one_process(tmp_path: Path):
    wave = np.linspace(0, 1, 100, dtype=np.float32)
    ears = Ears()
    clips = ClipCodes(ears, "codec", folder=tmp_path)
    codes = clips.get(wave).tolist()
    assert clips.get(wave.copy()).tolist() == codes
    clips.clear()
    assert clips.get(wave).tolist() == codes
    assert ClipCodes(ears, "codec", folder=tmp_path).get(wave).tolist() == codes
    assert ears.heard == 1
    ClipCodes(ears, "another codec", folder=tmp_path).get(wave)
    clips.get(wave * 0.5)
    assert ears.heard == 3
    clips.clear()
    clips._codec.codebook_size = 1  # what the files hold is no code of this one's
    clips.get(wave * 0.5)
    assert ears.heard == 4


@pytest.fixture
def cloner(server: HiggsAudioServer, monkeypatch) -> HiggsAudioServer:
    """The demo as one that clones."""
    defaults = dataclasses.replace(server.higgs.defaults, clones=True)
    monkeypatch.setitem(server.higgs.__dict__, "defaults", defaults)
    server.clear_reference()
    return server


@pytest.fixture
def reference(tmp_path: Path) -> dict:
    path = tmp_path / "me.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(24_000) / 10), 24_000)
    return {"reference_audio_path": path, "reference_text": "one", "max_new_frames": 30, "seed": 1}


def test_requests_in_one_voice_share_it(cloner: HiggsAudioServer, reference: dict, monkeypatch):
    counts = counted(cloner.higgs.model, monkeypatch)

    def start(text: str, **options) -> tuple[int, SpeechJob]:
        """A job, and what its voice took to prefill."""
        counts.clear()
        job = cloner.start(SpeechRequest(text, **{**reference, **options}))
        return sum(counts), job

    length, job = start("one two")
    assert length == positions(job.prompt[:2], cloner.higgs.model.delay) > 25
    taken, job = start("three")
    assert taken == 0
    job.run()
    assert [count for count in counts if count > 1] == [len(job.prompt[2].ids)]
    assert start("three", reference_text="two")[0] == length
    assert start("three", voice=PROFILE, reference_audio_path=None, reference_text=None)[0] == 0
    cloner.clear_reference()
    assert start("three")[0] == length


def test_the_next_process_neither_encodes_nor_prefills(
    cloner: HiggsAudioServer, reference: dict, tmp_path: Path, monkeypatch
):
    folder = tmp_path / "voices"
    whole = HiggsAudioServer(cloner.higgs, voice_cache=folder).generate("six", **reference)
    assert len(files(folder)) == 2
    monkeypatch.setattr(cloner.higgs.codec, "encode", None)
    counts = counted(cloner.higgs.model, monkeypatch)
    again = HiggsAudioServer(cloner.higgs, voice_cache=folder).generate("six", **reference)
    assert np.array_equal(again.pcm, whole.pcm)
    assert max(counts) < 25


def test_streams_and_wholes_share_a_voice(cloner: HiggsAudioServer, reference: dict):
    whole = cloner.generate("four", **reference)
    chunks = list(cloner.generate_stream("four", chunk_ms=200, **reference))
    assert np.array_equal(np.concatenate([chunk.pcm for chunk in chunks]), whole.pcm)


def test_nothing_is_written_by_default_for_a_small_model(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("MLX_HIGGS_CACHE", str(tmp_path))
    small = HiggsAudioServer.from_pretrained()
    monkeypatch.setitem(
        small.higgs.__dict__, "defaults", dataclasses.replace(small.higgs.defaults, clones=True)
    )
    small.generate("one", voice="en_man", max_new_frames=30, seed=1)
    assert files(tmp_path) == []


def test_weights_changed_before_the_first_request_reach_no_file(tmp_path: Path, seed: int):
    """The files are found by what the checkpoint was when it was loaded."""
    model = speaker(seed)
    original = Snapshot(model)
    kept = PrefixCache(model, "of the files", folder=tmp_path, original=original)
    assert prefix_of(kept, voice(seed)).parts
    assert len(list(tmp_path.iterdir())) == 1
    model.norm.weight = model.norm.weight * 2
    changed = PrefixCache(model, "of the files", folder=tmp_path / "other", original=original)
    assert prefix_of(changed, voice(seed)).parts
    assert not (tmp_path / "other").exists()
