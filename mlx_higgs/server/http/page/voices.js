// The voice library: pick one, hear it, delete it.

import { call, callJson } from "./api.js";
import { $, ask, copyOf, label, setIcon } from "./dom.js";

const MANY = 8; // from here on there is a field to find one
const ROUTE = "v1/audio/voices";

export class Voices {
  /** @param {(error: Error | string) => void} onError @param {() => void} onChange */
  constructor(onError, onChange) {
    Object.assign(this, { onError, onChange });
    this.all = [];
    this.picked = "";
    this.sample = $("sample");
    this.sampled = null;
    $("filter").addEventListener("input", () => this.#draw());
    for (const event of ["play", "pause", "ended"]) {
      this.sample.addEventListener(event, () => this.#showSampled());
    }
  }

  /** Read the list again; keep what is picked if it is still there. */
  async load(pick = this.picked) {
    const { voices } = await callJson(ROUTE);
    this.all = voices.filter((voice) => !voice.alias_of);
    const has = this.all.some((voice) => voice.id === pick);
    this.picked = has ? pick : (this.all[0]?.id ?? "");
    this.#draw();
    this.onChange();
  }

  /** Choose by id, if it is there. */
  pick(id) {
    if (!this.all.some((voice) => voice.id === id)) return;
    this.picked = id;
    this.#draw();
    this.onChange();
  }

  /** Fill a select with the names, keeping its choice. */
  fill(select, wanted = select.value) {
    const options = this.all.map((voice) => new Option(voice.name ?? voice.id, voice.id));
    select.replaceChildren(...options);
    select.value = this.all.some((voice) => voice.id === wanted) ? wanted : this.picked;
    select.disabled = !options.length;
  }

  /** The id for a name written in a script, whatever its case. */
  named(name) {
    return this.all.find((voice) => voice.id.toLowerCase() === name.toLowerCase())?.id;
  }

  #draw() {
    const many = this.all.length >= MANY;
    for (const id of ["filter", "filter-label"]) $(id).hidden = !many;
    const wanted = many ? $("filter").value.trim().toLowerCase() : "";
    const shown = this.all.filter((voice) => voice.id.toLowerCase().includes(wanted));
    $("voices").replaceChildren(...shown.map((voice) => this.#row(voice)));
    if (!this.all.length) {
      const none = document.createElement("li");
      none.className = "faint";
      none.textContent = "There is no voice yet: the model’s own is used.";
      $("voices").append(none);
    }
  }

  #row(voice) {
    const row = copyOf("voice");
    const [radio, name, about] = row.querySelectorAll("input, .name, .name + span");
    row.dataset.id = voice.id;
    name.textContent = voice.name ?? voice.id;
    about.textContent = describe(voice);
    about.title = voice.transcript ?? "";
    radio.value = voice.id;
    radio.checked = voice.id === this.picked;
    radio.addEventListener("change", () => {
      this.picked = voice.id;
      this.onChange();
    });
    const [hear, remove] = row.querySelectorAll("button");
    label(hear, `Hear ${voice.id}`);
    hear.addEventListener("click", () => this.#hear(voice.id));
    label(remove, `Delete ${voice.id}`);
    remove.hidden = voice.deletable === false; // it came with the server
    remove.addEventListener("click", () => this.#remove(voice.id));
    return row;
  }

  async #hear(id) {
    if (this.sampled === id && !this.sample.paused) {
      this.sample.pause();
      return;
    }
    try {
      const answer = await call(`${ROUTE}/${encodeURIComponent(id)}/sample`);
      if (this.sample.src) URL.revokeObjectURL(this.sample.src);
      this.sample.src = URL.createObjectURL(await answer.blob());
      this.sampled = id;
      await this.sample.play();
    } catch (error) {
      this.onError(error);
    }
  }

  #showSampled() {
    for (const row of $("voices").children) {
      const button = row.querySelector('[data-do="sample"]');
      const sounds = row.dataset.id === this.sampled && !this.sample.paused;
      if (!button) continue;
      setIcon(button, sounds ? "pause" : "play");
      label(button, sounds ? `Stop ${row.dataset.id}` : `Hear ${row.dataset.id}`);
    }
  }

  async #remove(id) {
    $("sure-words").textContent = `Delete the voice “${id}” and its clip from the server?`;
    if ((await ask($("sure-dialog"))) !== "yes") return;
    try {
      await call(`${ROUTE}/${encodeURIComponent(id)}`, { method: "DELETE" });
      await this.load();
      $("voice-title").focus();
    } catch (error) {
      this.onError(error);
    }
  }
}

function describe(voice) {
  const words = voice.transcript ?? "";
  const length = voice.seconds ? `${voice.seconds.toFixed(1)} s` : "";
  return [length, words].filter(Boolean).join(" · ");
}
