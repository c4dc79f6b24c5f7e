// Hear speech while it is made: samples are queued in Web Audio as they come. When the server is
// slower than real time the player waits until it has enough to go on.

const AT_LEAST = 0.3; // seconds in hand before playing starts
const AT_MOST = 8; // seconds in hand that are worth waiting for
const EARLY = 0.05; // seconds between queueing a piece and its start

export class Live {
  /**
   * @param {AudioContext} context made in a click, so that it may sound
   * @param {() => void} onChange called when it starts, waits or ends
   */
  constructor(context, rate, onChange) {
    Object.assign(this, { context, rate, onChange });
    this.parts = []; // all that came, Int16Array
    this.next = 0; // the first part not yet queued
    this.queued = 0; // samples given to Web Audio
    this.samples = 0; // samples that came
    this.ends = 0; // context time at which the queued ones end
    this.state = "waiting"; // waiting | playing | paused | over
    this.complete = false;
    this.expected = 0; // seconds the whole will probably last
    this.began = performance.now();
    this.sources = new Set();
  }

  get seconds() {
    return this.samples / this.rate;
  }

  /** Seconds of speech made in a second, since the first chunk. */
  get pace() {
    const passed = (performance.now() - this.began) / 1000;
    return passed > 0.05 ? this.seconds / passed : 1;
  }

  /** Seconds heard. */
  get position() {
    const ahead = Math.max(0, this.ends - this.context.currentTime);
    return Math.max(0, this.queued / this.rate - ahead);
  }

  push(pcm) {
    this.parts.push(pcm);
    this.samples += pcm.length;
    this.#go();
  }

  finish() {
    this.complete = true;
    this.#go();
  }

  pause() {
    if (this.state === "over") return;
    this.state = "paused";
    this.context.suspend();
    this.onChange();
  }

  resume() {
    if (this.state !== "paused") return;
    this.state = "waiting";
    this.context.resume();
    if (this.sources.size) this.#becomes("playing");
    this.#go();
  }

  /** Silence, for good. */
  close() {
    this.state = "over";
    for (const source of this.sources) {
      source.onended = null;
      source.stop();
    }
    this.sources.clear();
    this.parts = [];
  }

  #becomes(state) {
    if (this.state === state) return;
    this.state = state;
    this.onChange();
  }

  #go() {
    if (this.state === "over" || this.state === "paused") return;
    if (this.state === "waiting" && !this.#enough()) return;
    while (this.next < this.parts.length) this.#queue(this.parts[this.next++]);
    if (this.sources.size) this.#becomes("playing");
    else if (this.complete) this.#becomes("over");
  }

  /** Whether what is in hand lasts until the rest has come, at the pace seen so far. */
  #enough() {
    if (this.complete) return true;
    const inHand = (this.samples - this.queued) / this.rate;
    const rest = Math.max(0, this.expected - this.seconds);
    const needed = rest * (1 / Math.min(1, this.pace) - 1);
    return inHand >= Math.min(Math.max(needed, AT_LEAST), AT_MOST);
  }

  #queue(pcm) {
    const buffer = this.context.createBuffer(1, pcm.length, this.rate);
    const into = buffer.getChannelData(0);
    for (let i = 0; i < pcm.length; i++) into[i] = pcm[i] / 32768;
    const source = new AudioBufferSourceNode(this.context, { buffer });
    source.connect(this.context.destination);
    this.ends = Math.max(this.ends, this.context.currentTime + EARLY);
    source.start(this.ends);
    this.ends += pcm.length / this.rate;
    this.queued += pcm.length;
    this.sources.add(source);
    source.onended = () => {
      this.sources.delete(source);
      if (!this.sources.size) this.#ranDry();
    };
  }

  #ranDry() {
    if (this.state !== "playing") return;
    this.#becomes(this.complete ? "over" : "waiting");
    this.#go();
  }
}

/** A context at the speech's own rate where the browser allows it: pieces then join exactly. */
export function openContext(rate = 24_000) {
  try {
    return new AudioContext({ sampleRate: rate });
  } catch {
    return new AudioContext();
  }
}
