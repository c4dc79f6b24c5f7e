// The page: what is written becomes takes.

import { Refusal, call, changeKey, speech } from "./api.js";
import { Composer } from "./composer.js";
import { $, saveAs, tell } from "./dom.js";
import { NewVoice } from "./newvoice.js";
import { Player } from "./player.js";
import { wav } from "./sound.js";
import { Takes } from "./takes.js";
import { Voices } from "./voices.js";

const SEEDS = 2 ** 32;
const LOOK_OFTEN = 2000; // milliseconds until a server that is not ready is asked again
const LOOK_SELDOM = 30_000; // and one that is
const TITLE = 90; // characters
const IDEOGRAPHS = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Hangul}]/gu;

const about = { max_input_chars: Infinity, clones: null, words: null }; // of the server
const player = new Player();
const voices = new Voices(explain, () => {
  composer.turns.refresh();
  composer.show();
});
const composer = new Composer(voices, about, explain);
const newVoice = new NewVoice((name) => voices.load(name).catch(explain));
const takes = new Takes({ onOpen: open, onAgain: (take) => composer.takeOver(take), onGone: gone });
let listed = false; // the voices were asked for
let running = null; // AbortController of the take that is being made

// -- what the server is ------------------------------------------------------------------------

/** Look at the server for as long as the page is there; read the voices once it answers. */
async function watch() {
  const told = await look();
  const state = told?.state ?? "lost";
  const words = {
    ready: `${told?.model} · ready`,
    loading: `${told?.model} is being loaded…`,
    failed: "The model could not be loaded: see the server’s log.",
    lost: "The server does not answer.",
  }[state];
  $("state").className = `state ${state}`;
  tell($("state-words"), words);
  setTimeout(watch, state === "ready" ? LOOK_SELDOM : LOOK_OFTEN);
  if (told && !listed) await listVoices();
}

async function look() {
  try {
    const told = await (await fetch("page/about", { cache: "no-store" })).json();
    Object.assign(about, told, { words: told.words ? new Set(told.words) : null });
    newVoice.longest = told.max_reference_seconds;
    $("no-clone").hidden = told.clones !== false;
    composer.show();
    return told;
  } catch {
    return null;
  }
}

async function listVoices() {
  listed = true;
  try {
    await voices.load();
    explain(null);
  } catch (error) {
    explain(error);
  }
}

// -- making a take -----------------------------------------------------------------------------

async function generate() {
  if (running) return;
  player.wake();
  explain(null);
  let take;
  try {
    take = newTake();
  } catch (error) {
    explain(error);
    return;
  }
  running = new AbortController();
  busy(true);
  player.begin(take, take.expected);
  try {
    for (const [index, turn] of take.said.entries()) await say(take, turn, index);
    tell($("progress"), `made in ${take.spent.toFixed(1)} s`);
  } catch (error) {
    take.note = error.name === "AbortError" ? "stopped" : "broken off";
    tell($("progress"), take.note);
    explain(error);
  } finally {
    finish(take);
  }
}

function newTake() {
  const wanted = composer.take();
  const title = wanted.said.map((turn) => turn.text).join(" — ").replace(/\s+/g, " ");
  const names = [...new Set(wanted.said.map((turn) => turn.voice).filter(Boolean))];
  return {
    ...wanted,
    title: title.length > TITLE ? `${title.slice(0, TITLE - 1)}…` : title,
    voice: about.clones === false ? "" : names.join(", "),
    expected: expected(wanted),
    ...{ parts: [], rate: 24_000, seconds: 0, spent: 0, note: "" },
  };
}

/** Seconds it will probably last: what an even speaker needs. */
function expected({ said, pause }) {
  return said.reduce(
    (sum, { text }) => {
      const signs = text.match(IDEOGRAPHS)?.length ?? 0;
      return sum + signs / 4.5 + (text.length - signs) / 14 + 0.3;
    },
    pause * (said.length - 1),
  );
}

async function say(take, turn, index) {
  const began = performance.now();
  const { signal } = running;
  tell($("progress"), "Waiting for the first sound…");
  const body = { input: turn.text, seed: (take.seed + index) % SEEDS, ...take.sampling };
  if (turn.voice) body.voice = turn.voice;
  const { rate, chunks } = await speech(body, { signal, onWait: showWait });
  take.rate = rate;
  if (index && take.pause) add(take, new Int16Array(Math.round(take.pause * rate)));
  for await (const pcm of chunks) {
    add(take, pcm);
    tell($("progress"), progress(take, index));
  }
  signal.throwIfAborted();
  take.spent += (performance.now() - began) / 1000;
}

function add(take, pcm) {
  take.parts.push(pcm);
  take.seconds += pcm.length / take.rate;
  player.push(pcm, take.rate);
  $("made").value = Math.min(0.98, take.seconds / take.expected);
}

function progress(take, index) {
  if (player.starved) return "The server is slower than the speech: gathering some…";
  return take.said.length > 1 ? `Turn ${index + 1} of ${take.said.length}` : "Being made…";
}

function finish(take) {
  running = null;
  busy(false);
  if (!take.seconds) {
    player.clear();
    $("player").hidden = true;
    return;
  }
  take.blob = wav(take.parts, take.rate);
  $("take-actions").hidden = false;
  player.finish(take.blob, { silent: take.note === "stopped" });
  takes.add(take);
}

function busy(on) {
  const hadFocus = [document.body, $("generate"), $("stop")].includes(document.activeElement);
  $("generate").hidden = on;
  $("stop").hidden = !on;
  $("player").hidden = false;
  $("player").setAttribute("aria-busy", on);
  $("made").hidden = !on;
  $("made").removeAttribute("value"); // nobody knows until the first sound
  if (on) $("take-actions").hidden = true;
  if (hadFocus) $(on ? "stop" : "generate").focus();
}

function showWait(seconds) {
  const words = `The server is busy: it is asked again in ${seconds} s.`;
  tell($("told"), seconds ? words : "", true);
}

/** Show an error as a sentence; null takes the old one away. */
function explain(error) {
  if (error?.name === "AbortError") return;
  if (error && !(error instanceof Refusal)) console.error(error);
  const words = error instanceof Refusal ? error.message : `The page failed: ${error?.message}`;
  tell($("told"), error ? words : "");
}

// -- what was made -----------------------------------------------------------------------------

function open(take) {
  if (running) {
    tell($("told"), "Something is being made: stop it first.", true);
    return;
  }
  player.wake();
  $("player").hidden = false;
  $("take-actions").hidden = false;
  player.open(take);
  player.play();
  takes.mark(take);
  tell($("progress"), take.note);
}

function gone(take) {
  if (player.take !== take || running) return;
  player.clear();
  $("player").hidden = true;
}

async function saveMp3() {
  const { take } = player;
  $("save-mp3").disabled = true;
  tell($("progress"), "Making the MP3…");
  try {
    const headers = { "Content-Type": "audio/pcm" };
    const body = new Blob(take.parts); // WAV's samples, without its header
    const answer = await call("page/mp3", { method: "POST", headers, body });
    saveAs(await answer.blob(), fileName(take, "mp3"));
  } catch (error) {
    explain(error);
  } finally {
    $("save-mp3").disabled = false;
    tell($("progress"), "");
  }
}

function saveWav() {
  saveAs(player.take.blob, fileName(player.take, "wav"));
}

function fileName(take, ending) {
  const words = take.title.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["speech"];
  return `${words.slice(0, 6).join("-").slice(0, 60)}-${take.seed}.${ending}`;
}

// -- hands -------------------------------------------------------------------------------------

$("generate").addEventListener("click", generate);
$("stop").addEventListener("click", () => running?.abort());
$("save-wav").addEventListener("click", saveWav);
$("save-mp3").addEventListener("click", saveMp3);
$("key-button").addEventListener("click", () => changeKey().then(listVoices, explain));
$("reuse-seed").addEventListener("click", () => {
  composer.setSeed(player.take.seed);
  $("seed").focus();
});
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) generate();
  else if (event.key === "Escape") running?.abort();
});

watch();
