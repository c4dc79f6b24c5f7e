"""Laws of kept arrays: bounded, shared between processes, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_higgs import store
from mlx_higgs.store import Folder, Store, user_folder

KEYS = ["ab" * 32, "cd" * 32, "ef" * 32]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def fits(tensors: store.Tensors) -> bool:
    return tensors.keys() == {"a"}


def array(value: float, size: int = 256) -> store.Tensors:
    return {"a": mx.full((size,), value)}


def test_memory_keeps_what_was_used_last(tmp_path: Path):
    kept, made = Store(2100), []

    def get(key: str, size: int = 256):
        return kept.get(key, lambda: made.append(key) or array(1, size), fits)

    for key in (KEYS[0], KEYS[1], KEYS[0], KEYS[2], KEYS[0], KEYS[1]):
        get(key)
    assert made == [KEYS[0], KEYS[1], KEYS[2], KEYS[1]]
    assert kept.nbytes == 2048
    get("large", 4096)
    get("large", 4096)
    assert made[-2:] == ["large"] * 2
    for key in (KEYS[0], KEYS[1]):  # which it has not driven out
        get(key)
    assert made[-2:] == ["large"] * 2


def test_the_folder_keeps_what_was_used_last_and_touches_nothing_else(tmp_path: Path):
    stranger = tmp_path / "model.safetensors"
    mx.save_safetensors(str(stranger), {"w": mx.zeros(10_000)})
    left = [tmp_path / f".{KEYS[0]}.{'0' * 7}{i}.safetensors" for i in range(2)]
    for path in left:
        path.write_bytes(b"cut off")
    os.utime(left[0], (0, 0))
    folder = Folder(tmp_path, 2 * 1400)
    for age, key in enumerate(KEYS[:2]):
        folder.write(key, array(age))
        os.utime(tmp_path / f"{key}.safetensors", (age + 1, age + 1))
    assert folder.read(KEYS[0]) is not None  # now the second is the older one
    folder.write(KEYS[2], array(2))
    names = {path.name for path in files(tmp_path)}
    assert names == {stranger.name, left[1].name, *(f"{KEYS[i]}.safetensors" for i in (0, 2))}
    folder.write(KEYS[1], array(1, 10_000))  # more than there may be
    assert {path.name for path in files(tmp_path)} == names


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, monkeypatch):
    def full(path, *_):
        Path(path).write_bytes(b"half")
        raise RuntimeError("no space left")

    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.warns(RuntimeWarning, match="no space left"):
        Folder(tmp_path / "voices", 1 << 20).write(KEYS[0], array(1))
    assert files(tmp_path / "voices") == []


def test_the_folder_is_its_owners(tmp_path: Path):
    Folder(tmp_path / "a" / "voices", 1 << 20).write(KEYS[0], array(1))
    assert (tmp_path / "a" / "voices").stat().st_mode & 0o077 == 0


WRITER = """
import sys
from pathlib import Path
import mlx.core as mx
from mlx_higgs.store import Folder
keys = [digit * 64 for digit in "0123456789"]
folder = Folder(Path(sys.argv[1]) / "small", 5 * 5000)
roomy = Folder(Path(sys.argv[1]) / "large", 1 << 30)
print("ready", flush=True)
sys.stdin.readline()
for turn in range(60):
    key = keys[turn * int(sys.argv[2]) % 10]
    folder.write(key, {"a": mx.full((1100,), int(key[0]))})
    roomy.write(keys[0], {"a": mx.zeros(100_000)})
    assert roomy.read(keys[0]) is not None
    for other in keys:
        found = folder.read(other)
        assert found is None or found["a"].tolist() == [int(other[0])] * 1100, other
"""


def test_two_processes_share_a_folder(tmp_path: Path):
    """They write the same keys, read and make room at once: never half a file, no error."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path), step],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for step in ("1", "3")
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    results = [writer.communicate("go\n") for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], results
    kept = files(tmp_path / "small")
    assert all(store.NAME.fullmatch(path.name) for path in kept)
    assert 0 < sum(path.stat().st_size for path in kept) <= 5 * 5000


def test_where_a_users_caches_are(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MLX_HIGGS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert user_folder() == tmp_path / ".cache" / "mlx_higgs"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard wants ignored
    assert user_folder() == tmp_path / ".cache" / "mlx_higgs"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_folder() == tmp_path / "xdg" / "mlx_higgs"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert user_folder() == tmp_path / "Library" / "Caches" / "mlx_higgs"
    monkeypatch.setenv("MLX_HIGGS_CACHE", str(tmp_path / "mine"))
    assert user_folder() == tmp_path / "mine"
    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.delenv("MLX_HIGGS_CACHE")
    assert user_folder() is None


def no_home(path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")
