"""Playback with a stand-in device: every sample once, in order, with pauses where it must wait."""

from __future__ import annotations

import sys
from contextlib import suppress

import numpy as np
import pytest
from sound_card import BLOCK, Device

from mlx_higgs.playback import PlayBuffer, Player, play, player
from mlx_higgs.types import InputError

RATE = 1000


@pytest.fixture
def device(monkeypatch) -> Device:
    return put(monkeypatch, Device())


def put(monkeypatch, device: Device) -> Device:
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    return device


def noise(seed: int, count: int) -> np.ndarray:
    wave = np.random.default_rng(seed).uniform(0.1, 0.9, count)
    return wave.astype(np.float32)


def test_every_sample_is_played_once_in_order(seed: int, device: Device):
    wave = noise(seed, 995)
    with Player(RATE) as sound:
        assert device.calls == []
        for part in np.split(wave, [3, 3, 40, 700]):
            sound.push(part)
    heard = device.heard
    assert device.calls == ["start", "close"]
    assert device.rate == RATE
    assert np.array_equal(heard[heard > 0], wave)


def test_nothing_to_play_ends_at_once(device: Device):
    with Player(RATE):
        pass
    assert device.calls == ["close"]
    assert len(device.heard) == 0


def test_an_error_stops_it_at_once(seed: int, device: Device):
    with suppress(KeyboardInterrupt), Player(RATE) as sound:
        sound.push(noise(seed, 1_000_000))
        raise KeyboardInterrupt
    assert device.calls == ["start", "abort", "close"]
    assert len(device.heard) < 1_000_000


def test_a_device_that_goes_away_is_not_waited_for(seed: int, monkeypatch):
    device = put(monkeypatch, Device(unplugged=True))
    with Player(RATE) as sound:
        sound.push(noise(seed, 100))
    assert device.calls == ["start", "close"]


def test_no_device_is_one_line(monkeypatch):
    put(monkeypatch, Device(broken=True))
    for use in (lambda: Player(RATE), lambda: play(np.zeros(3), RATE)):
        with pytest.raises(InputError, match=r"Cannot play: Error querying device -1\.$"):
            use()
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(InputError, match=r"mlx_higgs\[play\]"):
        player()


def test_a_buffer_that_runs_dry_waits_for_more_each_time(seed: int):
    buffer = PlayBuffer(RATE)  # it collects 500 samples, then 1000, then 2000
    assert not buffer.pull(10).any()
    assert buffer.pauses == 0  # nothing had begun
    buffer.push(noise(seed, 20))
    assert buffer.pull(10).all()
    assert buffer.pull(15)[:10].all()
    for reserve in (500, 1000, 2000):
        buffer.push(noise(seed, reserve - 1))
        assert not buffer.pull(10).any()
        buffer.push(noise(seed, 1))
        assert buffer.pull(reserve).all()
        assert not buffer.pull(10).any()
    assert buffer.pauses == 4


def test_the_end_is_not_waited_for(seed: int):
    buffer = PlayBuffer(RATE)
    buffer.push(noise(seed, 15))
    buffer.pull(20)
    buffer.push(noise(seed, 30))
    assert not buffer.pull(10).any()
    buffer.finish()
    assert not buffer.over
    assert buffer.pull(40)[:30].all()
    assert buffer.over
    assert buffer.pauses == 1


@pytest.mark.parametrize("factor", [0.5, 1.5, 4.0])
def test_speech_made_slowly_is_played_whole_with_few_pauses(seed: int, factor: float):
    """60 s in chunks of 1 s; a pause each time would be 59."""
    wave, buffer, heard, made = noise(seed, 60 * RATE), PlayBuffer(RATE), [], 0
    for tick in range(round(60 * factor) * RATE // BLOCK + 60 * RATE // BLOCK):
        while made < 60 and tick * BLOCK >= made * RATE * factor:
            buffer.push(wave[made * RATE : (made + 1) * RATE])
            made += 1
        if made == 60:
            buffer.finish()
        heard.append(buffer.pull(BLOCK))
    heard = np.concatenate(heard)
    assert np.array_equal(heard[heard > 0], wave)
    assert buffer.pauses <= (0 if factor < 1 else 7)


def test_too_loud_is_clipped():
    buffer = PlayBuffer(RATE)
    buffer.push(np.array([2.0, -3.0, 0.5], np.float32))
    assert buffer.pull(3).tolist() == [1.0, -1.0, 0.5]
