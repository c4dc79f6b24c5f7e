// The window that adds a voice: a file or a recording, a name, and the words of the clip.

import { Refusal, call } from "./api.js";
import { $, clock, tell } from "./dom.js";
import { Recorder } from "./record.js";
import { clipOf } from "./sound.js";

const NAMING = "A name has letters, digits, dots, dashes and underscores, and begins with no dot.";
const ENDINGS = { "audio/flac": "flac", "audio/mpeg": "mp3", "audio/ogg": "ogg" };

export class NewVoice {
  /** @param {(name: string) => void} onSaved */
  constructor(onSaved) {
    this.onSaved = onSaved;
    this.longest = 30; // seconds; the server's limit once it is known
    this.dialog = $("voice-dialog");
    this.recorder = new Recorder($("level"));
    $("add-voice").addEventListener("click", () => this.#open());
    $("pick-clip").addEventListener("click", () => $("clip-file").click());
    $("clip-file").addEventListener("change", () => this.#picked());
    $("record").addEventListener("click", () => this.#record());
    $("voice-cancel").addEventListener("click", () => this.dialog.close());
    $("voice-form").addEventListener("submit", (event) => {
      event.preventDefault(); // the window stays until the server has the voice
      this.#save();
    });
    this.dialog.addEventListener("close", () => this.#leave());
  }

  #open() {
    $("voice-form").reset();
    this.#setClip(null);
    tell($("voice-told"), "");
    tell($("clip-state"), "");
    this.dialog.showModal();
  }

  #leave() {
    this.recorder.cancel();
    this.#showRecording(false);
    $("clip").pause();
    this.#setClip(null);
  }

  async #picked() {
    const [file] = $("clip-file").files;
    $("clip-file").value = "";
    if (!file) return;
    this.recorder.cancel();
    await this.#use(file);
    if (!$("voice-name").value) $("voice-name").value = asName(file.name);
  }

  async #use(blob) {
    tell($("voice-told"), "");
    try {
      this.#setClip(await clipOf(blob));
    } catch {
      this.#setClip(null);
      tell($("voice-told"), "This file holds no sound that the browser can read.");
      return;
    }
    const { seconds } = this.clip;
    if (seconds > this.longest) {
      tell($("voice-told"), `The clip lasts ${seconds.toFixed(0)} s: cut it to ${this.longest} s at most.`);
    }
  }

  #setClip(clip) {
    this.clip = clip;
    const player = $("clip");
    if (player.src) URL.revokeObjectURL(player.src);
    player.hidden = !clip;
    if (clip) player.src = URL.createObjectURL(clip.blob);
    else player.removeAttribute("src");
    if (clip) tell($("clip-state"), clip.seconds ? `${clip.seconds.toFixed(1)} s` : "");
  }

  async #record() {
    if (this.recorder.running) {
      this.recorder.stop();
      return;
    }
    this.#setClip(null);
    tell($("voice-told"), "");
    try {
      const recording = await this.recorder.record(this.longest, (seconds, started) => {
        this.#showRecording(true);
        if (started) tell($("clip-state"), "Recording…");
        $("record").querySelector("span").textContent = `Stop ${clock(seconds)}`;
      });
      if (recording) await this.#use(recording);
    } catch (error) {
      tell($("voice-told"), error.message);
    } finally {
      this.#showRecording(false);
    }
  }

  #showRecording(on) {
    $("record").classList.toggle("on", on);
    $("level").hidden = !on;
    if (!on) $("record").querySelector("span").textContent = "Record";
  }

  /** The first thing that is missing, as a sentence, and the field that lacks it. */
  #lack() {
    const [name, words, consent] = [$("voice-name"), $("voice-words"), $("consent")];
    if (!this.clip) return [$("pick-clip"), "Choose a file or record a clip first."];
    if (!name.value) return [name, "Give the voice a name."];
    if (!name.checkValidity()) return [name, NAMING];
    if (!words.value.trim()) return [words, "Write what the clip says, word for word."];
    if (!consent.checked) return [consent, "Only a voice whose owner agreed may be added."];
    return null;
  }

  async #save() {
    const lack = this.#lack();
    if (lack) {
      tell($("voice-told"), lack[1]);
      lack[0].focus();
      return;
    }
    const name = $("voice-name").value;
    const { blob } = this.clip;
    const form = new FormData();
    form.set("name", name);
    form.set("audio_sample", blob, `${name}.${ENDINGS[blob.type] ?? "wav"}`);
    form.set("ref_text", $("voice-words").value.trim());
    form.set("consent", "The person who added this voice says that its owner agreed.");
    $("voice-save").disabled = true;
    try {
      await call("v1/audio/voices", { method: "POST", body: form });
      this.dialog.close();
      this.onSaved(name);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      tell($("voice-told"), error.message);
    } finally {
      $("voice-save").disabled = false;
    }
  }
}

function asName(file) {
  const stem = file.replace(/\.[^.]*$/, "").normalize("NFKD");
  return stem.replace(/[^A-Za-z0-9_.-]+/g, "_").replace(/^[_.]+|[_.]+$/g, "").slice(0, 64);
}
