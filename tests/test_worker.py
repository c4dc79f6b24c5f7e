"""Laws of the worker: one thread computes, everybody hears what they would hear alone."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tiny_speaker import TinySpeaker

from mlx_higgs import HiggsAudioServer
from mlx_higgs.batch import Batch
from mlx_higgs.delivery import EXACT, STEADY, WHOLE, Delivery
from mlx_higgs.pieces import Chunking
from mlx_higgs.server.metrics import Metrics
from mlx_higgs.server.request import SpeechRequest
from mlx_higgs.server.ticket import Ticket
from mlx_higgs.server.turns import Running, Turns
from mlx_higgs.server.worker import Busy, TimedOut, Unavailable, Worker
from mlx_higgs.types import GenerationError, InputError

HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds before a hang is one


@contextmanager
def working(speaker: TinySpeaker, **options) -> Iterator[Worker]:
    worker = Worker(lambda: speaker, **options)
    worker.start()
    try:
        assert worker.wait(PATIENCE), worker.error
        yield worker
    finally:
        worker.close()


def asked(seed: int, count: int) -> list[tuple[SpeechRequest, Delivery]]:
    rng = np.random.default_rng(seed)
    deliveries = [EXACT, STEADY, WHOLE, Delivery(1, 1, 1), Delivery(3, 7, 11)]
    return [
        (
            SpeechRequest("x" * (number + 1), seed=number, max_new_frames=int(rng.integers(5, 90))),
            deliveries[number % len(deliveries)],
        )
        for number in range(count)
    ]


def heard(ticket: Ticket) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(chunk.pcm for chunk in ticket)])


def alone(seed: int, requests: list[tuple[SpeechRequest, Delivery]]) -> list[np.ndarray]:
    with working(TinySpeaker(seed)) as worker:
        return [heard(worker.submit(request, delivery=how)) for request, how in requests]


def until(condition: Callable[[], object]) -> None:
    """Wait for what another thread is about to do."""
    waiting = threading.Event()
    for _ in range(round(PATIENCE / 0.01)):
        if condition():
            return
        waiting.wait(0.01)
    raise AssertionError("it never came")


class Gate:
    """Holds the jobs of some texts before their next chunk, and with them the thread."""

    def __init__(self, speaker: TinySpeaker):
        self.reached, self.open = threading.Event(), threading.Event()
        speaker.before = self

    def __call__(self, request: SpeechRequest) -> None:
        if request.target_text.startswith("held"):
            self.reached.set()
            assert self.open.wait(PATIENCE)


# -- the same audio -----------------------------------------------------------------------------


def test_everybody_hears_what_they_would_hear_alone(seed: int):
    requests = asked(seed, 14)
    expected = alone(seed, requests)
    with working(TinySpeaker(seed), max_batch=4, max_waiting=20) as worker:
        tickets = [worker.submit(request, delivery=how) for request, how in requests]
        for ticket in tickets[::3]:
            ticket.cancel()
        for place, ticket in enumerate(tickets):
            if place % 3:
                np.testing.assert_array_equal(heard(ticket), expected[place])
                assert (ticket.outcome, ticket.stop_reason) == ("finished", "length")
                assert ticket.rows == requests[place][0].max_new_frames
        assert worker.running == worker.waiting == 0


def test_the_demo_says_in_company_what_it_says_alone(seed: int):
    said = [SpeechRequest(text, seed=seed, max_new_frames=26) for text in ("One two.", "Three.")]
    worker = Worker(HiggsAudioServer.from_pretrained)
    worker.start()
    try:
        assert worker.wait(PATIENCE), worker.error
        expected = [heard(worker.submit(request, delivery=STEADY)) for request in said]
        tickets = [worker.submit(request, delivery=EXACT) for request in said]
        for ticket, whole in zip(tickets, expected, strict=True):
            np.testing.assert_array_equal(heard(ticket), whole)
            assert len(whole)
    finally:
        worker.close()


def test_nobody_waits_while_anothers_piece_begins(seed: int, monkeypatch):
    """Two long texts and a short one: whoever has the rows for a chunk speaks after that frame."""
    texts = ("One two. Three four. Five.", "Three. Four five.", "Eight nine.")
    said = [
        (SpeechRequest(text, seed=seed + n, max_new_frames=15 + 3 * n), how)
        for n, (text, how) in enumerate(zip(texts, (STEADY, EXACT, EXACT), strict=True))
    ]
    waits: dict[Running, int] = {}
    between, chunk = Turns._between, Running.chunk

    def counting(turns: Turns) -> None:
        for one in turns._running:
            rows = one.rows
            there = rows is not None and (rows.ended or rows.num_ready >= one._wanted)
            waits[one] = waits.get(one, 0) + 1 if there and not one.over else 0
            longest.append(waits[one])
        between(turns)

    def speaking(one: Running) -> None:
        waits[one] = 0
        chunk(one)

    longest: list[int] = []
    monkeypatch.setattr(Turns, "_between", counting)
    monkeypatch.setattr(Running, "chunk", speaking)
    worker = Worker(sentence_by_sentence)
    worker.start()
    try:
        assert worker.wait(PATIENCE), worker.error
        expected = [heard(worker.submit(request, delivery=how)) for request, how in said]
        tickets = [worker.submit(request, delivery=how) for request, how in said]
        for ticket, whole in zip(tickets, expected, strict=True):
            np.testing.assert_array_equal(heard(ticket), whole)
            assert len(whole)
    finally:
        worker.close()
    assert max(longest) == 1


def sentence_by_sentence() -> HiggsAudioServer:
    server = HiggsAudioServer.from_pretrained()
    start = partial(server.start_long, chunking=Chunking("sentence", limit=5, retries=0))
    server.start_long = start  # pyright: ignore[reportAttributeAccessIssue]
    return server


def test_asyncio_reads_what_a_thread_reads(seed: int):
    requests = asked(seed, 9)
    expected = alone(seed, requests)

    async def read(ticket: Ticket) -> np.ndarray:
        return np.concatenate([chunk.pcm async for chunk in ticket])

    async def read_all(worker: Worker) -> list[np.ndarray]:
        tickets = [worker.submit(request, delivery=how) for request, how in requests]
        return await asyncio.wait_for(asyncio.gather(*map(read, tickets)), PATIENCE)

    with working(TinySpeaker(seed), max_waiting=9) as worker:
        for found, whole in zip(asyncio.run(read_all(worker)), expected, strict=True):
            np.testing.assert_array_equal(found, whole)


def test_a_seed_is_drawn_where_none_is_asked(seed: int):
    with working(TinySpeaker(seed)) as worker:
        first, second = (worker.submit(SpeechRequest("x", max_new_frames=5)) for _ in range(2))
        assert first.seed != second.seed
        again = SpeechRequest("x", max_new_frames=5, seed=first.seed)
        np.testing.assert_array_equal(heard(first), heard(worker.submit(again)))


# -- one thread ---------------------------------------------------------------------------------


def test_one_thread_computes_and_hands_out_numpy(seed: int):
    speaker = TinySpeaker(seed)
    with working(speaker) as worker:
        tickets = [worker.submit(request, delivery=how) for request, how in asked(seed, 6)]
        assert all(type(chunk.pcm) is np.ndarray for ticket in tickets for chunk in ticket)
    assert len(speaker.threads) == 1
    assert threading.get_ident() not in speaker.threads


def test_a_newcomer_joins_in_the_middle_of_anothers_chunk(seed: int):
    """The first one's only chunk has 20,000 frames; who comes later with 9 is done before."""
    with working(TinySpeaker(seed)) as worker:
        admitted = threading.Event()
        long = SpeechRequest("long", seed=1, max_new_frames=20_000)
        first = worker.submit(long, delivery=WHOLE, on_admit=admitted.set)
        assert admitted.wait(PATIENCE)
        second = worker.submit(SpeechRequest("short", seed=2, max_new_frames=9), delivery=EXACT)
        assert len(heard(second))
        assert first.outcome is None
        first.cancel()


def test_whoever_waits_gets_a_turn_in_order(seed: int):
    speaker, order = TinySpeaker(seed), []
    gate = Gate(speaker)
    with working(speaker, max_batch=1) as worker:
        tickets = [worker.submit(SpeechRequest("held", seed=0, max_new_frames=5))]
        for name in ("b", "c", "d"):
            told = lambda name=name: order.append(name)  # noqa: E731
            request = SpeechRequest(name, seed=0, max_new_frames=5)
            tickets.append(worker.submit(request, on_admit=told))
        gate.open.set()
        assert all(len(heard(ticket)) for ticket in tickets)
    assert order == ["b", "c", "d"]


# -- a bounded queue ----------------------------------------------------------------------------


def test_a_full_queue_refuses_and_says_when_to_come_again(seed: int):
    speaker, metrics = TinySpeaker(seed), Metrics()
    gate = Gate(speaker)
    request = SpeechRequest("held", seed=0, max_new_frames=5)
    with working(speaker, max_batch=1, max_waiting=2, metrics=metrics) as worker:
        tickets = [worker.submit(request) for _ in range(3)]
        assert gate.reached.wait(PATIENCE)
        until(lambda: (worker.running, worker.waiting) == (1, 2))
        for _ in range(4):
            with pytest.raises(Busy) as refused:
                worker.submit(request)
            assert refused.value.retry_after >= 1
            assert str(refused.value.retry_after) in str(refused.value)
        tickets.pop().cancel()  # its place in the queue is free at once
        tickets.append(worker.submit(request))
        assert value(metrics, "mlx_higgs_waiting") == 2
        gate.open.set()
        assert all(len(heard(ticket)) for ticket in tickets)
        assert worker.running == worker.waiting == 0
        assert len(heard(worker.submit(request)))
    assert value(metrics, "mlx_higgs_refused_total") == 4
    assert value(metrics, 'mlx_higgs_requests_total{outcome="finished"}') == 4
    assert value(metrics, 'mlx_higgs_requests_total{outcome="cancelled"}') == 1


def test_when_to_come_again_follows_the_measured_speed(seed: int):
    speaker = TinySpeaker(seed)
    gate = Gate(speaker)
    with working(speaker, max_batch=2, max_waiting=0) as worker:
        assert len(heard(worker.submit(SpeechRequest("x", seed=0, max_new_frames=5))))
        assert worker._seconds is not None
        worker._seconds = 30.0
        request = SpeechRequest("held", seed=0, max_new_frames=5)
        first, second = worker.submit(request), worker.submit(request)
        assert gate.reached.wait(PATIENCE)
        with pytest.raises(Busy) as refused:
            worker.submit(request)
        assert refused.value.retry_after == 15
        gate.open.set()
        assert len(heard(first)) == len(heard(second))
        assert worker._seconds < 30.0


# -- leaving ------------------------------------------------------------------------------------


def test_who_leaves_stops_costing_within_a_frame(seed: int):
    speaker = TinySpeaker(seed)
    with working(speaker, max_batch=2) as worker:
        gone = worker.submit(SpeechRequest("gone", seed=1, max_new_frames=10**6), delivery=STEADY)
        stays = worker.submit(SpeechRequest("stays", seed=2, max_new_frames=300), delivery=STEADY)
        next(iter(gone))
        gone.cancel()
        made = speaker.made["gone"]
        assert len(heard(stays))
        assert speaker.made["gone"] <= made + 1
        assert list(gone) == []
        assert gone.outcome == "cancelled"
        assert worker.running == 0


@pytest.mark.parametrize("frames", [1, 4])
def test_a_cancelled_chunk_is_not_made_to_its_end(seed: int, frames: int):
    """All of it is one chunk, and the thread is in the middle of it."""
    speaker = TinySpeaker(seed)
    with working(speaker) as worker:
        gone = worker.submit(SpeechRequest("gone", seed=1, max_new_frames=10**6), delivery=WHOLE)
        until(lambda: speaker.made.get("gone", 0) >= frames)
        gone.cancel()
        made = speaker.made["gone"]
        assert len(heard(worker.submit(SpeechRequest("next", seed=2, max_new_frames=50))))
        assert speaker.made["gone"] <= made + 1


def test_leaving_a_with_block_cancels(seed: int):
    with working(TinySpeaker(seed)) as worker:
        with worker.submit(SpeechRequest("x", seed=0, max_new_frames=10**6)) as ticket:
            next(iter(ticket))
        assert ticket.outcome == "cancelled"
        with worker.submit(SpeechRequest("x", seed=0, max_new_frames=5)) as ticket:
            heard(ticket)
        assert ticket.outcome == "finished"


def test_a_closed_loop_is_a_client_that_left(seed: int):
    """One that was closed without a word to those who read on it."""
    loop = asyncio.new_event_loop()
    with working(TinySpeaker(seed)) as worker:
        ticket = worker.submit(SpeechRequest("x", seed=0, max_new_frames=10**6), delivery=EXACT)
        reading = aiter(ticket)
        loop.run_until_complete(anext(reading))
        loop.close()
        until(lambda: ticket.outcome == "cancelled")


def test_nothing_of_those_who_are_gone_is_kept(seed: int):
    speaker = TinySpeaker(seed)
    with working(speaker, max_batch=3, max_waiting=20) as worker:
        tickets = [worker.submit(request, delivery=how) for request, how in asked(seed, 12)]
        for ticket in tickets[::2]:
            ticket.cancel()
        for ticket in tickets[1::2]:
            heard(ticket)
        last = SpeechRequest("last", seed=0, max_new_frames=5)
        heard(worker.submit(last))  # the thread has been round once more
        until(lambda: gc.collect() is not None and not any(job() for job in speaker.jobs))


# -- a client that reads slowly -----------------------------------------------------------------


def test_a_slow_reader_holds_up_nobody_and_grows_no_memory(seed: int):
    slow_request = SpeechRequest("slow", seed=1, max_new_frames=200)
    expected = alone(seed, [(slow_request, EXACT)])[0]
    speaker = TinySpeaker(seed)
    with working(speaker, max_batch=2, buffer=2.0) as worker:
        slow = worker.submit(slow_request, delivery=EXACT)
        until(lambda: slow.full)
        made = speaker.made["slow"]
        assert made <= 2 * 25 + EXACT.largest
        for number in range(3):  # the one that is not read keeps no place either
            pair = [SpeechRequest("x" * n, seed=number, max_new_frames=60) for n in (1, 2)]
            assert all(len(heard(one)) for one in list(map(worker.submit, pair)))
        assert speaker.made["slow"] == made
        np.testing.assert_array_equal(heard(slow), expected)


# -- failures -----------------------------------------------------------------------------------


def test_one_that_fails_fails_alone(seed: int):
    requests = asked(seed, 6)
    expected = alone(seed, requests)
    speaker = TinySpeaker(seed)

    def before(request: SpeechRequest) -> None:
        if "bad" in request.target_text and speaker.made.get(request.target_text, 0) > 20:
            raise GenerationError("no") if "known" in request.target_text else ZeroDivisionError

    speaker.before = before
    with working(speaker, max_waiting=20) as worker:
        bad = [
            worker.submit(SpeechRequest(text, seed=3, max_new_frames=80), delivery=EXACT)
            for text in ("bad and known", "bad")
        ]
        tickets = [worker.submit(request, delivery=how) for request, how in requests]
        with pytest.raises(GenerationError, match="no"):
            heard(bad[0])
        with pytest.raises(GenerationError, match="ZeroDivisionError"):
            heard(bad[1])
        for ticket, whole in zip(tickets, expected, strict=True):
            np.testing.assert_array_equal(heard(ticket), whole)


@pytest.mark.parametrize("log_text", [False, True])
@pytest.mark.parametrize("where", ["job", "batch", "worker"])
def test_what_was_to_be_said_is_logged_only_where_that_is_asked_for(
    seed: int, where: str, log_text: bool, monkeypatch, caplog
):
    """An exception's message may hold it."""

    def fail(*_) -> bool:
        raise ValueError("'My secret' is not in list")

    speaker = TinySpeaker(seed)
    with working(speaker, log_text=log_text) as worker:
        ticket = worker.submit(SpeechRequest("My secret", seed=0), delivery=EXACT)
        next(iter(ticket))
        if where == "job":
            speaker.before = fail
        elif where == "batch":
            monkeypatch.setattr(Batch, "_advance", fail)
        else:
            monkeypatch.setattr(Running, "needs_frames", property(fail))
        until(lambda: ticket.outcome)
        monkeypatch.undo()
    assert ticket.outcome == "failed"
    assert "broke off" in caplog.text
    assert "ValueError" in caplog.text
    assert "test_worker.py" in caplog.text  # where it came from
    assert ("My secret" in caplog.text) is log_text


def test_a_request_that_cannot_be_met_is_told_by_its_ticket(seed: int):
    speaker = TinySpeaker(seed)
    start = speaker.start

    def refuse(request, delivery, batch):
        if request.target_text == "unknown voice":
            raise InputError("There is no such voice.")
        return start(request, delivery, batch)

    speaker.start_long = refuse
    with working(speaker) as worker:
        refused = worker.submit(SpeechRequest("unknown voice"))
        with pytest.raises(InputError, match="no such voice"):
            heard(refused)
        assert refused.outcome == "failed"
        assert len(heard(worker.submit(SpeechRequest("unknown voice", seed=1), long=False)))


def test_a_batch_that_breaks_is_told_to_all_in_it_and_the_next_are_served(seed: int, monkeypatch):
    speaker, breaks = TinySpeaker(seed), []
    advance = Batch._advance

    def breaking(self):
        if breaks:
            raise RuntimeError(breaks[0])
        advance(self)

    requests = asked(seed, 3)
    expected = alone(seed, requests)
    monkeypatch.setattr(Batch, "_advance", breaking)
    with working(speaker) as worker:
        request = SpeechRequest("x", seed=0, max_new_frames=10**6)
        broken = [worker.submit(request, delivery=STEADY) for _ in range(3)]
        for ticket in broken:
            next(iter(ticket))
        breaks.append("[malloc] Unable to allocate")
        for ticket in broken:
            with pytest.raises(GenerationError, match="broke off"):
                heard(ticket)
        breaks.clear()
        for (request, how), whole in zip(requests, expected, strict=True):
            np.testing.assert_array_equal(heard(worker.submit(request, delivery=how)), whole)


def test_a_worker_that_stumbles_goes_on_with_the_next(seed: int, monkeypatch):
    requests = asked(seed, 3)
    expected = alone(seed, requests)
    with working(TinySpeaker(seed)) as worker:
        ticket = worker.submit(SpeechRequest("x", seed=0, max_new_frames=10**6), delivery=EXACT)
        next(iter(ticket))
        monkeypatch.setattr(Running, "needs_frames", property(stumble))
        until(lambda: ticket.outcome)
        monkeypatch.undo()
        with pytest.raises(GenerationError, match="broke off"):
            heard(ticket)
        for (request, how), whole in zip(requests, expected, strict=True):
            np.testing.assert_array_equal(heard(worker.submit(request, delivery=how)), whole)


def stumble(_) -> bool:
    raise ZeroDivisionError


def test_a_request_may_take_so_long_and_no_longer(seed: int):
    """Under way with a reader who does not read, and in the queue behind it."""
    metrics = Metrics()
    speaker = TinySpeaker(seed)
    with working(speaker, max_batch=1, buffer=0.2, metrics=metrics) as worker:
        endless = SpeechRequest("x", seed=0, max_new_frames=10**6)
        late = worker.submit(endless, delivery=EXACT, timeout=0.3)
        until(lambda: late.outcome)
        with pytest.raises(TimedOut, match="longer"):
            heard(late)
        gate = Gate(speaker)
        held = worker.submit(SpeechRequest("held", seed=0, max_new_frames=5))
        assert gate.reached.wait(PATIENCE)
        queued = worker.submit(endless, timeout=0.01)
        gate.open.set()
        until(lambda: queued.outcome)
        with pytest.raises(TimedOut):
            heard(queued)
        assert len(heard(held))
    assert value(metrics, 'mlx_higgs_requests_total{outcome="timeout"}') == 2


# -- the beginning and the end ------------------------------------------------------------------


@pytest.mark.parametrize("error", [InputError("no such model"), RuntimeError("[metal] broken")])
def test_a_model_that_cannot_be_loaded_is_told(error: Exception):
    def load():
        raise error

    worker = Worker(load)
    with pytest.raises(Unavailable, match="still") as early:
        worker.submit(SpeechRequest("x"))
    assert early.value.retry_after
    worker.start()
    assert not worker.wait(PATIENCE)
    assert str(error) in worker.error
    assert not worker.ready
    with pytest.raises(Unavailable, match=re.escape(str(error))) as never:
        worker.submit(SpeechRequest("x"))
    assert never.value.retry_after is None
    worker.close()


def test_closing_ends_all_and_waits_for_the_thread(seed: int):
    worker = Worker(lambda: TinySpeaker(seed), max_batch=2)
    worker.start()
    assert worker.wait(PATIENCE)
    request = SpeechRequest("x", seed=0, max_new_frames=10**6)
    tickets = [worker.submit(request, delivery=how) for how in (WHOLE, EXACT, STEADY, STEADY)]
    next(iter(tickets[1]))
    worker.close()
    worker.close()
    assert "mlx" not in [thread.name for thread in threading.enumerate()]
    for ticket in tickets:
        with pytest.raises(Unavailable, match="shutting down"):
            heard(ticket)
    with pytest.raises(Unavailable, match="shutting down"):
        worker.submit(request)
    assert not worker.ready
    Worker(lambda: TinySpeaker(seed)).close()  # one that never began


def test_closing_is_seen_at_whatever_moment(seed: int, monkeypatch):
    """Just before the thread forgets that there were news, too."""
    worker = Worker(lambda: TinySpeaker(seed))
    worker.start()
    assert worker.wait(PATIENCE)
    forget = worker._wake.clear

    def late() -> None:
        forget()
        if not worker._closing:
            threading.Thread(target=worker.close, daemon=True).start()
            until(worker._wake.is_set)
        forget()

    monkeypatch.setattr(worker._wake, "clear", late)
    worker._wake.set()
    try:
        until(lambda: not worker._thread.is_alive())
    finally:
        worker._wake.set()


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_waiting": -1}, {"timeout": 0.0}])
def test_bounds_are_checked(wrong: dict):
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        Worker(lambda: None, **wrong)


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("raise", 1), ("wait", -signal.SIGTERM)])
def test_a_process_with_jobs_under_way_ends_cleanly(how: str, code: int):
    """Interpreters that end while a thread is inside MLX abort, if nobody joins it."""
    process = subprocess.Popen(
        [sys.executable, str(HERE / "tiny_speaker.py"), how],
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "running\n"
    if how == "wait":
        process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert "terminate called" not in errors
    assert ("told on purpose" in errors) == (how == "raise")


# -- what is told -------------------------------------------------------------------------------


def value(metrics: Metrics, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (.+)$", metrics.render()[0].decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


def test_metrics_count_what_was_said_and_never_tell_what(seed: int):
    metrics = Metrics()
    with working(TinySpeaker(seed), metrics=metrics) as worker:
        assert value(metrics, "mlx_higgs_ready") == 1
        tickets = [
            worker.submit(SpeechRequest("My secret.", seed=n, max_new_frames=50)) for n in range(3)
        ]
        assert all(len(heard(ticket)) for ticket in tickets)
    metrics.response("POST", "/v1/audio/speech", 200)
    assert value(metrics, "mlx_higgs_audio_seconds_total") == pytest.approx(6.0)
    assert value(metrics, "mlx_higgs_first_audio_seconds_count") == 3
    assert value(metrics, "mlx_higgs_real_time_factor_count") == 3
    assert value(metrics, "mlx_higgs_running") == 0
    assert 'status="200"' in metrics.render()[0].decode()
    assert "secret" not in metrics.render()[0].decode()
    assert metrics.render()[1].startswith("text/plain")
