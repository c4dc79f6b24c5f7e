// What is written and set: the turns of a take, checked, with a word about them.

import { Refusal } from "./api.js";
import { $, tell } from "./dom.js";
import { Turns } from "./turns.js";

const SEEDS = 2 ** 32;
const NAMED = 5; // unknown words that are shown
const WORD = /\p{L}+(?:'\p{L}+)?/gu;
const SAMPLING = ["temperature", "top_p", "top_k"];

export class Composer {
  /**
   * @param {import("./voices.js").Voices} voices
   * @param {object} about of the server: max_input_chars, clones, notice, words
   * @param {(error: Error | null) => void} explain null takes an old error away
   */
  constructor(voices, about, explain) {
    Object.assign(this, { voices, about, explain });
    this.turns = new Turns(voices, () => this.show());
    $("words").addEventListener("input", () => this.show());
    $("open-text").addEventListener("click", () => $("text-file").click());
    $("text-file").addEventListener("change", () => this.#readText());
    $("knobs").addEventListener("submit", (event) => event.preventDefault());
    $("dice").addEventListener("click", () => ($("seed").value = anySeed()));
    for (const radio of document.querySelectorAll('[name="mode"]')) {
      radio.addEventListener("change", () => this.#changeMode());
    }
    this.#changeMode();
  }

  get dialogue() {
    return document.querySelector('[name="mode"]:checked').value === "dialogue";
  }

  /** `{said, pause, seed, sampling, dialogue}`. Throws the sentence that says what is amiss. */
  take() {
    const said = this.#said();
    const { pause = 0, seed = anySeed(), ...sampling } = this.#settings();
    return { said, pause, seed, sampling, dialogue: this.dialogue };
  }

  /** Put a take's text, voice, settings and seed where they are written. */
  takeOver(take) {
    document.querySelector(`[name="mode"][value="${take.dialogue ? "dialogue" : "text"}"]`).click();
    if (take.dialogue) {
      this.turns.set(take.said);
      $("pause").value = take.pause;
    } else {
      $("words").value = take.said[0].text;
      this.voices.pick(take.said[0].voice);
    }
    for (const id of SAMPLING) $(id).value = take.sampling[id] ?? "";
    this.setSeed(take.seed);
    this.show();
    $(take.dialogue ? "add-turn" : "words").focus();
  }

  setSeed(seed) {
    $("seed").value = seed;
    $("settings").open = true;
  }

  /** Count what is written, and say what is to be known of it. */
  show() {
    const texts = this.dialogue ? this.turns.all.map((turn) => turn.text) : [$("words").value.trim()];
    const most = this.about.max_input_chars;
    const sum = texts.reduce((total, text) => total + text.length, 0).toLocaleString("en");
    const limit = Number.isFinite(most) ? ` of ${most.toLocaleString("en")}` : "";
    const turns = texts.length === 1 ? "1 turn" : `${texts.length} turns`;
    $("count").textContent = this.dialogue ? `${sum} characters in ${turns}` : `${sum}${limit} characters`;
    $("count").classList.toggle("over", texts.some((text) => text.length > most));
    const voice = !this.dialogue && this.about.clones !== false && this.voices.picked;
    $("in-voice").textContent = voice ? `in the voice ${voice}` : "";
    tell($("hint"), strange(texts, this.about.words) || (this.about.notice ?? ""));
  }

  #said() {
    const written = this.dialogue
      ? this.turns.all
      : [{ voice: this.voices.picked, text: $("words").value.trim(), field: $("words") }];
    const most = this.about.max_input_chars;
    for (const { text, field } of written) {
      if (!text) amiss(field, this.dialogue ? "A turn has no text." : "Write what should be said first.");
      if (text.length > most) {
        amiss(field, `${text.length} characters are too many: this server takes ${most} at once.`);
      }
    }
    return written.map(({ voice, text }) => ({ voice, text }));
  }

  /** Those that were filled in. */
  #settings() {
    const chosen = {};
    for (const id of ["seed", ...SAMPLING, ...(this.dialogue ? ["pause"] : [])]) {
      const field = $(id);
      const name = field.labels[0].firstChild.data.trim();
      if (!field.checkValidity()) amiss(field, `${name}: ${field.validationMessage}`);
      if (field.value !== "") chosen[id] = Number(field.value);
    }
    return chosen;
  }

  #changeMode() {
    $("as-text").hidden = this.dialogue;
    $("as-dialogue").hidden = !this.dialogue;
    $("voices").classList.toggle("listed", this.dialogue);
    $("voice-title").textContent = this.dialogue ? "Voices" : "Voice";
    this.show();
  }

  async #readText() {
    const [file] = $("text-file").files;
    $("text-file").value = "";
    if (!file) return;
    this.explain(null);
    const text = (await file.text()).replace(/^\uFEFF/, "").trim();
    if (!this.dialogue) $("words").value = text;
    else if (!this.turns.read(text)) {
      this.explain(new Refusal("The file is no script: write a line as [Name] what is said."));
    }
    this.show();
  }
}

function anySeed() {
  return Math.floor(Math.random() * SEEDS);
}

/** Refuse, with the field at hand. */
function amiss(field, words) {
  const box = field.closest("details");
  if (box) box.open = true;
  field.focus();
  throw new Refusal(words);
}

/** The words that a small model was not made for, as a sentence. */
function strange(texts, known) {
  if (!known) return "";
  const said = new Set(texts.join(" ").toLowerCase().match(WORD));
  const unknown = [...said].filter((word) => !known.has(word)).sort();
  const more = unknown.length > NAMED ? ` and ${unknown.length - NAMED} more` : "";
  const named = unknown.slice(0, NAMED).join(", ");
  return unknown.length ? `Not among the ${known.size} words it reads best: ${named}${more}.` : "";
}
