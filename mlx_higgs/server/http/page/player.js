// One take on the stage: heard while it is made, then played from the whole.

import { $, clock, label, setIcon } from "./dom.js";
import { Live, openContext } from "./live.js";
import { Wave } from "./wave.js";

const STEP = 1; // seconds an arrow key moves

export class Player {
  constructor() {
    this.wave = new Wave($("wave").querySelector("canvas"));
    this.whole = $("whole");
    this.live = null;
    this.take = null;
    this.loop = 0;
    $("play").addEventListener("click", () => this.toggle());
    for (const event of ["play", "pause", "ended", "timeupdate", "seeked"]) {
      this.whole.addEventListener(event, () => this.#show());
    }
    $("wave").addEventListener("keydown", (event) => this.#key(event));
    this.#dragging($("wave"));
  }

  /** Take the click that lets the page sound; call it before anything is awaited. */
  wake() {
    this.context ??= openContext();
    if (this.context.state === "suspended") this.context.resume();
  }

  /** An empty stage for a take that is about to be made. */
  begin(take, expected) {
    this.clear();
    Object.assign(this, { take, rate: 24_000, expected });
    this.#describe(take);
    this.#show();
  }

  /** Samples that came. */
  push(pcm, rate) {
    if (!this.live) {
      this.rate = rate;
      this.live = new Live(this.context, rate, () => this.#show());
      this.live.expected = this.expected;
      this.wave.span = this.expected * rate;
    }
    this.wave.add(pcm);
    this.live.push(pcm);
    this.#show();
  }

  /** Nothing more will come: `blob` is the whole, which replays and seeks. */
  finish(blob, { silent = false } = {}) {
    this.wave.span = this.wave.samples;
    this.#load(blob);
    if (silent) this.#dropLive();
    else this.live?.finish();
    this.#show();
  }

  /** Put a finished take on the stage. */
  open(take) {
    this.begin(take, 0);
    this.rate = take.rate;
    for (const part of take.parts) this.wave.add(part);
    this.#load(take.blob);
    this.#show();
  }

  /** Silence; nothing is on the stage. */
  clear() {
    this.#dropLive();
    this.whole.pause();
    if (this.whole.hasAttribute("src")) URL.revokeObjectURL(this.whole.src);
    this.whole.removeAttribute("src");
    this.take = null;
    this.wave.reset();
    this.#show();
  }

  /** What came was heard, and more is to come. */
  get starved() {
    return this.live?.state === "waiting" && !this.live.complete;
  }

  toggle() {
    this.wake();
    const { live } = this;
    if (live && live.state !== "over") {
      if (live.state === "paused") live.resume();
      else live.pause();
    } else if (this.whole.paused) this.play();
    else this.whole.pause();
    this.#show();
  }

  play() {
    this.whole.play().catch(() => {});
  }

  get position() {
    return this.live ? this.live.position : this.whole.currentTime;
  }

  /** Seconds there are to hear. */
  get length() {
    return this.wave.samples / this.rate;
  }

  #load(blob) {
    this.whole.src = URL.createObjectURL(blob);
  }

  #dropLive() {
    this.live?.close();
    this.live = null;
    if (this.context?.state === "suspended") this.context.resume();
  }

  #seek(seconds) {
    if (!this.whole.hasAttribute("src")) return; // still being made
    const sounding = this.live ? this.live.state === "playing" : !this.whole.paused;
    this.#dropLive();
    this.whole.currentTime = Math.max(0, Math.min(seconds, this.length));
    if (sounding) this.play();
    this.#show();
  }

  #key(event) {
    const moves = { ArrowLeft: -STEP, ArrowDown: -STEP, ArrowRight: STEP, ArrowUp: STEP };
    if (event.key in moves) this.#seek(this.position + moves[event.key]);
    else if (event.key === "Home") this.#seek(0);
    else if (event.key === "End") this.#seek(this.length);
    else if (event.key === " ") this.toggle();
    else return;
    event.preventDefault();
  }

  #dragging(wave) {
    const seek = (event) => {
      const box = wave.getBoundingClientRect();
      this.#seek(((event.clientX - box.left) / box.width) * this.length);
    };
    wave.addEventListener("pointerdown", (event) => {
      wave.setPointerCapture(event.pointerId);
      seek(event);
    });
    wave.addEventListener("pointermove", (event) => {
      if (wave.hasPointerCapture(event.pointerId)) seek(event);
    });
  }

  #describe(take) {
    $("take-title").textContent = take.title;
    $("take-voice").textContent = take.voice;
    $("take-seed").textContent = take.seed;
  }

  /** The one place that turns the state into what is seen. */
  #show() {
    const { live } = this;
    const whole = this.whole.hasAttribute("src");
    if (live?.state === "over" && whole) this.#dropLive();
    const sounding = this.live ? this.live.state !== "paused" : !this.whole.paused;
    const idle = !this.live && !whole;
    $("play").disabled = idle;
    setIcon($("play"), sounding && !idle ? "pause" : "play");
    label($("play"), sounding && !idle ? "Pause" : "Play");
    this.#times();
    cancelAnimationFrame(this.loop);
    if (sounding && !idle) this.loop = requestAnimationFrame(() => this.#show());
  }

  #times() {
    const { position, length } = this;
    $("position").textContent = clock(position);
    $("length").textContent = clock(length);
    const slider = $("wave");
    slider.setAttribute("aria-valuemax", length.toFixed(1));
    slider.setAttribute("aria-valuenow", position.toFixed(1));
    slider.setAttribute("aria-valuetext", `${clock(position)} of ${clock(length)}`);
    const played = Math.round(position * this.rate);
    if (played !== this.wave.played) {
      this.wave.played = played;
      this.wave.draw();
    }
  }
}
