// The server: what is asked of it, and its refusals as sentences.

import { $, ask, tell } from "./dom.js";

const KEPT = "mlx_higgs.key"; // sessionStorage: gone with the tab
const LONGEST_WAIT = 60; // seconds, whatever Retry-After says

/** A refusal that can be shown: its message is a sentence. */
export class Refusal extends Error {}

/**
 * A request that waits its turn. Asks for the key when one is wanted; a busy server (429) is asked
 * again after the time it names, and `onWait(seconds)` is told every second, with 0 at the end.
 */
export async function call(path, { onWait = () => {}, ...options } = {}) {
  for (;;) {
    const answer = await request(path, options);
    if (answer.ok) return answer;
    if (answer.status === 401) await askForKey(await sentence(answer), options.signal);
    else if (answer.status === 429) await wait(answer, onWait, options.signal);
    else throw new Refusal(await sentence(answer));
  }
}

export async function callJson(path, options) {
  return (await call(path, options)).json();
}

async function request(path, options) {
  const headers = new Headers(options.headers);
  const key = sessionStorage.getItem(KEPT);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  try {
    return await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Is it still running?");
  }
}

/** The server's own words, or what its status says. */
async function sentence(answer) {
  try {
    const { error } = await answer.json();
    if (typeof error?.message === "string" && error.message) return error.message;
  } catch {
    // not JSON: something between this page and the server answered
  }
  return `The server refused with ${answer.status} ${answer.statusText}`.trim() + ".";
}

async function wait(answer, onWait, signal) {
  const named = Number(answer.headers.get("Retry-After"));
  await answer.body?.cancel();
  try {
    for (let left = Math.min(Math.max(named || 1, 1), LONGEST_WAIT); left > 0; left--) {
      onWait(Math.ceil(left));
      await sleep(1000, signal);
    }
  } finally {
    onWait(0);
  }
}

function sleep(ms, signal) {
  return new Promise((done, stopped) => {
    signal?.throwIfAborted();
    const end = () => {
      clearTimeout(timer);
      stopped(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", end);
      done();
    }, ms);
    signal?.addEventListener("abort", end, { once: true });
  });
}

let asking = null; // one window, however many requests want it

async function askForKey(why, signal) {
  tell($("key-told"), hasKey() ? why : "");
  asking ??= ask($("key-dialog")).then(takeKey);
  const given = await asking;
  signal?.throwIfAborted();
  if (!given) throw new Refusal("The server wants its API key: press “API key” to enter it.");
}

/** Whether one was entered. */
function takeKey() {
  asking = null;
  const key = $("key").value.trim();
  $("key").value = "";
  $("key-button").hidden = false;
  if (!key) return false;
  sessionStorage.setItem(KEPT, key);
  return true;
}

/** Forget the key and ask for another. */
export async function changeKey() {
  sessionStorage.removeItem(KEPT);
  await askForKey("");
}

function hasKey() {
  return sessionStorage.getItem(KEPT) !== null;
}

/**
 * Speech as it is made: an async iterator of Int16Array chunks at `rate`.
 *
 * Returns `{rate, chunks}`. Leaving the loop, or aborting `signal`, closes the connection, and the
 * server stops its work.
 */
export async function speech(body, options) {
  const answer = await call("v1/audio/speech", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, response_format: "pcm", stream_format: "audio", stream: true }),
    ...options,
  });
  const rate = Number(answer.headers.get("X-Sample-Rate")) || 24_000;
  return { rate, chunks: samples(answer.body.getReader()) };
}

/** Bytes come cut anywhere: an odd one waits for its other half. */
async function* samples(reader) {
  let odd = new Uint8Array(0);
  let ended = false;
  try {
    for (;;) {
      const { done, value } = await read(reader);
      ended = done;
      if (done) break;
      const bytes = new Uint8Array(odd.length + value.length);
      bytes.set(odd);
      bytes.set(value, odd.length);
      const whole = bytes.length - (bytes.length % 2);
      odd = bytes.slice(whole);
      if (whole) yield littleEndian(bytes, whole / 2);
    }
  } finally {
    if (!ended) await reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server broke off before the end. What came until then is kept.");
  }
}

function littleEndian(bytes, count) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return Int16Array.from({ length: count }, (_, i) => view.getInt16(2 * i, true));
}
