"""The page at ``/``, as a person meets it: in a browser without a window, on a running server."""

from __future__ import annotations

import io
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from http_client import RATE, StubWorker, running, serving, tone, wait_until

from mlx_higgs import HiggsAudioServer
from mlx_higgs.server import encoders
from mlx_higgs.server.http import page as page_module
from mlx_higgs.server.ticket import Busy
from mlx_higgs.server.worker import Facts, Worker
from mlx_higgs.types import InputError
from mlx_higgs.voices.library import VoiceLibrary

CLIP = Path(__file__).parent.parent / "examples" / "voice_prompts" / "en_man.wav"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
FLAGS = [
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
FILES = sorted(page_module.FOLDER.glob("*.[!p]*"))
GROUNDS = ("--paper", "--card", "--field", "--tint")
PHONE = {"width": 360, "height": 740}


@pytest.fixture
def library(tmp_path: Path) -> VoiceLibrary:
    return VoiceLibrary(tmp_path / "voices")


@pytest.fixture
def worker() -> StubWorker:
    return StubWorker()


# -- without a browser ----------------------------------------------------------------------------


def test_its_files_are_open_and_nothing_else_is(worker, library):
    with serving(worker, library, api_key="secret") as client:
        for path, (data, media_type, tag) in page_module.files().items():
            answer = client.get(path)
            assert (answer.status_code, answer.content) == (200, data), path
            assert answer.headers["content-type"] == media_type
            assert "'unsafe" not in answer.headers["content-security-policy"]
            assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
        assert client.get("/page/about").json()["model"] == "tiny"
        for path in ("/page/__init__.py", "/page/..%2f__init__.py", "/page/", "/page/none.js"):
            assert client.get(path).status_code in (401, 404), path
        assert client.post("/page/mp3", content=b"").status_code == 401


def test_every_file_it_names_is_there():
    html = (page_module.FOLDER / "index.html").read_text(encoding="utf-8")
    scripts = {path.name: path.read_text() for path in FILES if path.suffix == ".js"}
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', html))
    named |= {name for text in scripts.values() for name in re.findall(r'from "\./([^"]+)"', text)}
    assert named | {"index.html"} == {path.name for path in FILES}


def test_it_names_nothing_elsewhere_and_runs_nothing_inline():
    for path in FILES:
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, path.name
        assert not re.search(r"<[^>]*\s(?:style|on\w+)=", text), path.name
    html = (page_module.FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|<script(?![^>]*\ssrc=)", html)


def test_ids_that_scripts_and_labels_use_are_there():
    html = (page_module.FOLDER / "index.html").read_text(encoding="utf-8")
    ids = re.findall(r'\sid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'\s(?:for|aria-labelledby|aria-describedby)="([^"]+)"', html)
    used += re.findall(r'<use href="#([^"]+)"', html)
    for path in FILES:
        if path.suffix == ".js":
            used += re.findall(r'\$\("([^"]+)"\)', path.read_text(encoding="utf-8"))
    assert not set(used) - set(ids)


def test_mp3_of_what_it_holds(worker, library):
    import soundfile

    kind = {"Content-Type": "audio/pcm"}
    wave = tone(5)
    with serving(worker, library, max_body_bytes=100_000) as client:
        pcm = (wave * 32767).astype("<i2").tobytes()
        answer = client.post("/page/mp3", content=pcm, headers=kind)
        assert answer.headers["content-type"] == "audio/mpeg"
        heard, rate = soundfile.read(io.BytesIO(answer.content), dtype="float32")
        assert rate == RATE
        assert abs(len(heard) - len(wave)) <= 2 * 1152  # frames of an MP3
        assert np.corrcoef(heard[: len(wave)], wave[: len(heard)])[0, 1] > 0.99
        for body, headers, status in (
            (b"", kind, 400),
            (b"odd", kind, 400),
            (pcm * 2, kind, 413),
            (pcm, {"Content-Type": "text/plain"}, 415),
        ):
            answer = client.post("/page/mp3", content=body, headers=headers)
            assert answer.status_code == status
            assert answer.json()["error"]["message"].endswith(".")


def test_text_can_be_told_from_its_ground():
    """WCAG 2: 4.5 to 1 for text, in both schemes."""
    css = (page_module.FOLDER / "base.css").read_text(encoding="utf-8")
    schemes = [dict(re.findall(r"(--[\w-]+): (#\w{6});", part)) for part in css.split("@media")[:2]]
    texts = {"--ink": GROUNDS, "--faint": GROUNDS, "--bad": ("--bad-tint", "--card")}
    for colours in schemes:
        for text, grounds in {**texts, "--on-accent": ("--accent",)}.items():
            for ground in grounds:
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(one: str, other: str) -> float:
    """WCAG's: (lighter + 0.05) / (darker + 0.05) of relative luminances."""
    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    srgb = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


# -- in a browser ---------------------------------------------------------------------------------


def find_browser() -> str | None:
    found = (shutil.which(name) for name in BROWSERS)
    return next(filter(None, found), MAC if Path(MAC).exists() else None)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = find_browser()
    if path is None:
        pytest.skip("there is no Chromium or Chrome on this machine")
    root = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=FLAGS + root)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable]:
    """Opens a server's page; in the end nothing was asked of anybody else, and nothing failed."""
    contexts, seen, complaints = [], [], []

    def visit(url: str, *, ready: bool = True, fine: tuple[int | str, ...] = (), **options):
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
        contexts.append(context)
        context.set_default_timeout(20_000)
        page = context.new_page()
        page.on("request", lambda request: seen.append((url, request.url)))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: _complain(message, fine, complaints))
        page.goto(url)
        page.wait_for_selector(".state.ready" if ready else ".state")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []
    assert [at for url, at in seen if not at.startswith((url, "blob:" + url))] == []


def _complain(message, fine: tuple[int | str, ...], complaints: list[str]) -> None:
    """Chromium itself logs every answer of 400 and above, and every one that broke off."""
    expected = any(f" {code}" in message.text for code in fine)
    if message.type in ("error", "warning") and not expected:
        complaints.append(message.text)


@contextmanager
def demo(library: VoiceLibrary) -> Iterator[str]:
    worker = Worker(HiggsAudioServer.from_pretrained)
    with running(worker, library) as url:
        yield url


class Gated(StubWorker):
    """Speaks a chunk each time it is let."""

    def __init__(self, chunks: int):
        super().__init__(chunks=chunks)
        self.gate = threading.Semaphore(0)
        self.held = self  # pyright: ignore[reportIncompatibleVariableOverride]

    def wait(self, seconds: float) -> bool:
        return self.gate.acquire(timeout=seconds)


def say(page, text: str) -> None:
    page.fill("#words", text)
    page.click("#generate")


def until(page, expression: str) -> None:
    """Wait for JavaScript to be true; the page's own policy forbids Playwright's way of it."""
    wait_until(lambda: page.evaluate(expression))


def finished(page) -> None:
    page.wait_for_selector("#take-actions:visible")


def told(page, region: str = "told") -> str:
    page.wait_for_selector(f"#{region}:not(:empty)")
    return page.inner_text(f"#{region}")


def pcm_of(page) -> np.ndarray:
    """The samples of the WAV that the audio element holds; the page's own policy forbids this."""
    data = page.evaluate(
        """async () => {
            const bytes = await (await fetch(document.getElementById("whole").src)).arrayBuffer();
            return Array.from(new Uint8Array(bytes));
        }"""
    )
    wav = bytes(data)
    assert wav[:4] == b"RIFF"
    assert int.from_bytes(wav[24:28], "little") == RATE
    assert int.from_bytes(wav[40:44], "little") == len(wav) - 44
    return np.frombuffer(wav[44:], "<i2")


def test_type_generate_and_hear_it(visit, library):
    with demo(library) as url:
        page = visit(url, bypass_csp=True)
        assert page.inner_text("#state-words") == "tiny · ready"
        say(page, "three one four")
        finished(page)
        seed = int(page.inner_text("#take-seed"))
        body = {"input": "three one four", "seed": seed, "response_format": "pcm"}
        body["voice"] = page.input_value('[name="voice"]:checked')
        same = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=60).content
        np.testing.assert_array_equal(pcm_of(page), np.frombuffer(same, "<i2"))
        page.wait_for_selector('#play[aria-label="Play"]')  # it was heard live to its end
        page.click("#play")
        until(page, "document.getElementById('whole').currentTime > 0.2")
        assert page.evaluate("!document.getElementById('whole').error")


def test_it_is_heard_while_it_is_made_and_stop_stops_the_work(visit, library):
    worker = Gated(chunks=20)
    with running(worker, library) as url:
        page = visit(url, bypass_csp=True)
        say(page, "a text " * 20)
        for _ in range(10):
            worker.gate.release()
        until(page, "document.getElementById('position').textContent > '0:00.3'")
        assert page.is_visible("#stop")
        assert worker.tickets[0].outcome is None
        page.click("#stop")
        wait_until(lambda: worker.tickets[0].outcome == "cancelled")
        finished(page)
        page.wait_for_selector("#takes .take")
        assert "stopped" in page.inner_text("#takes")
        heard = pcm_of(page)
        assert len(heard) == 10 * 12_000
        assert page.is_visible("#generate")


def test_a_player_that_ran_dry_waits_and_goes_on(visit, library):
    worker = Gated(chunks=4)
    with running(worker, library) as url:
        page = visit(url)
        say(page, "short")
        worker.gate.release(2)
        until(page, "document.getElementById('position').textContent === '0:01.0'")
        assert page.is_visible("#stop")
        worker.gate.release(2)
        finished(page)
        page.wait_for_selector('#play[aria-label="Play"]')
        assert page.inner_text("#length") == "0:02.0"


def test_an_error_is_a_sentence(visit, worker, library):
    with running(worker, library, max_input_chars=30) as url:
        page = visit(url, fine=(400,))
        page.click("#generate")
        assert told(page) == "Write what should be said first."
        say(page, "x" * 31)
        assert told(page) == "31 characters are too many: this server takes 30 at once."
        assert page.get_attribute("#count", "class") == "count over"
        worker.refusal = InputError("The seed is no seed.")
        say(page, "hello")
        until(page, "document.getElementById('told').textContent.includes('seed')")
        assert told(page) == "The seed is no seed."
        assert page.get_attribute("#told", "role") == "alert"
        page.click("#settings summary")
        page.fill("#top_p", "7")
        page.click("#generate")
        until(page, "document.getElementById('told').textContent.startsWith('Top')")
        page.fill("#top_p", "")
        worker.refusal = None
        page.click("#generate")
        finished(page)
        assert page.inner_text("#told") == ""


def test_a_stream_that_breaks_off_is_told_and_kept(visit, library):
    worker = Gated(chunks=5)
    worker.fails_after = 2
    with running(worker, library) as url:
        page = visit(url, bypass_csp=True, fine=("net::",))
        say(page, "hello")
        worker.gate.release(2)
        until(page, "document.getElementById('length').textContent === '0:01.0'")
        worker.gate.release()
        assert "broke off" in told(page)
        finished(page)
        assert len(pcm_of(page)) == 2 * 12_000
        assert "broken off" in page.inner_text("#takes")


def test_a_busy_server_is_asked_again(visit, worker, library):
    worker.refusal = Busy("All places are taken.", 2)
    with running(worker, library) as url:
        page = visit(url, fine=(429,))
        say(page, "hello")
        assert re.fullmatch(r"The server is busy: it is asked again in [12] s\.", told(page))
        worker.refusal = None
        finished(page)
        assert page.inner_text("#told") == ""
        worker.refusal = Busy("All places are taken.", 30)
        page.click("#generate")
        until(page, "document.getElementById('told').textContent.includes('30 s')")
        page.keyboard.press("Escape")
        page.wait_for_selector("#generate:visible")


def test_a_key_is_asked_for_and_kept_in_the_tab(visit, worker, library):
    with running(worker, library, api_key="secret") as url:
        page = visit(url, fine=(401,))
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        assert "missing or wrong" in told(page, "key-told")
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        page.wait_for_selector("#voices .voice")
        say(page, "hello")
        finished(page)
        page.reload()
        page.wait_for_selector("#voices .voice")
        assert page.evaluate("localStorage.length") == 0
        assert page.evaluate("Object.values(sessionStorage)") == ["secret"]
        assert page.context.cookies() == []


def add_voice(page, name: str) -> None:
    page.fill("#voice-name", name)
    page.fill("#voice-words", "The words of the clip.")
    page.check("#consent")
    page.click("#voice-save")


def test_upload_a_voice_hear_it_use_it_delete_it(visit, worker, library):
    with running(worker, library) as url:
        page = visit(url)
        page.click("#add-voice")
        page.click("#voice-save")
        assert told(page, "voice-told") == "Choose a file or record a clip first."
        page.set_input_files("#clip-file", CLIP)
        until(page, "document.getElementById('voice-name').value === 'en_man'")
        add_voice(page, "mine")
        page.wait_for_selector('.voice[data-id="mine"] :checked')
        assert library.get("mine").transcript == "The words of the clip."
        page.click('[aria-label="Hear mine"]')
        until(page, "document.getElementById('sample').currentTime > 0.1")
        say(page, "hello")
        finished(page)
        assert worker.requests[0].voice is not None
        page.click('[aria-label="Delete mine"]')
        page.click("#sure-dialog .danger")
        page.wait_for_selector('.voice[data-id="mine"]', state="detached")
        assert "mine" not in library.names()


def test_a_file_without_sound_and_a_taken_name_are_told(visit, worker, library):
    with running(worker, library) as url:
        page = visit(url, fine=(400, 409))
        page.click("#add-voice")
        page.set_input_files("#clip-file", files={"name": "a.wav", "mimeType": "", "buffer": b"x"})
        assert "no sound" in told(page, "voice-told")
        page.set_input_files("#clip-file", CLIP)
        page.wait_for_selector("#clip:visible")
        add_voice(page, "en_woman")  # is bundled
        until(page, "document.getElementById('voice-told').textContent.includes('wom')")
        page.keyboard.press("Escape")
        page.wait_for_selector("#voice-dialog", state="hidden")


def test_record_a_voice(visit, worker, library):
    with running(worker, library) as url:
        page = visit(url, permissions=["microphone"])
        page.click("#add-voice")
        page.click("#record")
        until(page, "document.getElementById('record').textContent.includes('0:02')")
        page.click("#record")
        page.wait_for_selector("#clip:visible")
        add_voice(page, "recorded")
        page.wait_for_selector('.voice[data-id="recorded"]')
        assert library.get("recorded").clip.read_bytes()[:4] == b"RIFF"


def test_a_dialogue_is_one_generation_per_turn(visit, worker, library):
    with running(worker, library) as url:
        page = visit(url, bypass_csp=True)
        page.check('[name="mode"][value="dialogue"]', force=True)
        page.click("#add-turn")
        for index, text in enumerate(("first", "second", "third"), 1):
            page.fill(f".turn:nth-child({index}) textarea", text)
        page.select_option(".turn:nth-child(1) select", "en_woman")
        page.select_option(".turn:nth-child(3) select", "en_man_deep")
        page.click('[aria-label="Move turn 3 up"]')
        page.click('[aria-label="Remove turn 3"]')
        page.fill("#pause", "0.5")
        page.click("#settings summary")
        page.fill("#seed", "40")
        page.click("#generate")
        finished(page)
        assert [request.target_text for request in worker.requests] == ["first", "third"]
        assert [ticket.seed for ticket in worker.tickets] == [40, 41]
        parts = [tone(40), np.zeros(RATE // 2, np.float32), tone(41)]
        wanted = encoders.samples(np.concatenate(parts))
        assert pcm_of(page).tobytes() == wanted


def test_a_script_becomes_turns(visit, worker, library):
    script = "[en_woman] Shall we go?\n\n[Somebody] In a minute.\nOr two.\nen_woman: Well."
    with running(worker, library) as url:
        page = visit(url)
        page.check('[name="mode"][value="dialogue"]', force=True)
        file = {"name": "a.txt", "mimeType": "text/plain", "buffer": script.encode()}
        page.set_input_files("#text-file", file)
        said = "[...document.querySelectorAll('.turn')].map(t => t.querySelector('%s').value)"
        assert page.evaluate(said % "textarea") == ["Shall we go?", "In a minute. Or two.", "Well."]
        voices = page.evaluate(said % "select")
        assert voices[0] == voices[2] == "en_woman" != voices[1]


def test_by_keyboard_alone(visit, worker, library):
    with running(worker, library) as url:
        page = visit(url)
        press = page.keyboard.press
        order = []
        for _ in range(30):
            press("Tab")
            focus = page.evaluate(
                """() => {
                    const at = document.activeElement;
                    const shown = at.matches(".modes input") ? at.nextElementSibling : at;
                    const mark = getComputedStyle(shown).outlineStyle;
                    return [at.id || at.name || at.getAttribute("aria-label") || at.tagName, mark];
                }"""
            )
            order.append(focus[0])
            assert focus[0] == "BODY" or focus[1] != "none", focus
            if focus[0] == "words":
                page.keyboard.type("hello")
        wanted = ["mode", "words", "open-text", "generate", "add-voice", "voice"]
        assert [name for name in order if name in wanted][: len(wanted)] == wanted
        page.focus("#generate")
        press("Enter")
        finished(page)
        page.wait_for_selector('#play[aria-label="Play"]')
        page.focus("#wave")
        press("End")
        press("ArrowLeft")
        assert page.get_attribute("#wave", "aria-valuetext") == "0:00.5 of 0:01.5"
        press("Space")
        until(page, "document.getElementById('whole').currentTime > 0.6")
        page.focus('[name="mode"]:checked')
        press("ArrowRight")
        assert page.is_visible("#turns")


def test_a_take_comes_back_with_all_it_was_made_of(visit, worker, library):
    with running(worker, library) as url:
        page = visit(url)
        page.click("#settings summary")
        page.fill("#temperature", "0.5")
        page.check('[name="voice"][value="en_woman"]')
        say(page, "the first")
        finished(page)
        seed = page.inner_text("#take-seed")
        page.fill("#temperature", "")
        page.check('[name="voice"][value="en_man"]')
        say(page, "the second")
        page.wait_for_selector("#takes .take:nth-child(2)")
        page.click('[aria-label="Take over text, voice and seed of “the first”"]')
        page.click("#generate")
        page.wait_for_selector("#takes .take:nth-child(3)")
        first, _, again = worker.requests
        assert again == first
        assert str(first.seed) == seed
        with page.expect_download() as download:
            page.click("#save-wav")
        assert download.value.suggested_filename == f"the-first-{seed}.wav"
        with page.expect_download() as download:
            page.click("#save-mp3")
        assert Path(download.value.path()).stat().st_size > 1000
        page.click("#forget")
        assert not page.is_visible("#player")


def test_a_model_that_cannot_clone_says_so(visit, worker, library):
    worker.defaults = Facts(clones=False, notice="It counts.", words=("one", "two"))
    with running(worker, library) as url:
        page = visit(url)
        assert "cannot clone" in page.inner_text("#no-clone")
        assert page.inner_text("#hint") == "It counts."
        page.fill("#words", "One elephant")
        assert page.inner_text("#hint") == "Not among the 2 words it reads best: elephant."


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(visit, worker, library, scheme):
    with running(worker, library) as url:
        page = visit(url, viewport=PHONE, has_touch=True, is_mobile=True, color_scheme=scheme)
        say(page, "hello " * 20)
        finished(page)
        for mode in ("text", "dialogue"):
            page.check(f'[name="mode"][value="{mode}"]', force=True)
            assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        small = page.evaluate(
            """() => [...document.querySelectorAll("button")]
                .filter((b) => b.checkVisibility() && b.getBoundingClientRect().height < 40)
                .map((b) => b.id || b.title)"""
        )
        assert small == []
