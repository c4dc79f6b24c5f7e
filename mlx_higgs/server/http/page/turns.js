// Dialogue: rows of a voice and what it says, said one after the other.

import { $, copyOf, label } from "./dom.js";

const TURN = /^\s*(?:\[([^\]\n]{1,64})\]|([\p{L}\p{N}_.-]{1,64}):)\s*(.*)$/u; // [Name] text, Name: text

export class Turns {
  /** @param {import("./voices.js").Voices} voices @param {() => void} onChange */
  constructor(voices, onChange) {
    Object.assign(this, { voices, onChange });
    this.list = $("turns");
    $("add-turn").addEventListener("click", () => this.#add().querySelector("textarea").focus());
    this.list.addEventListener("click", (event) => this.#press(event.target.closest("button")));
    this.list.addEventListener("input", () => this.onChange());
    this.list.addEventListener("paste", (event) => this.#paste(event));
    this.#add();
    this.#add();
  }

  /** What is to be said: `{voice, text}` of every turn, in order. */
  get all() {
    return [...this.list.children].map((row) => ({
      voice: row.querySelector("select").value,
      text: row.querySelector("textarea").value.trim(),
      field: row.querySelector("textarea"),
    }));
  }

  /** After the library changed. The second speaker starts with another voice than the first. */
  refresh() {
    for (const [index, row] of [...this.list.children].entries()) {
      const select = row.querySelector("select");
      const other = this.voices.all[index % 2]?.id;
      this.voices.fill(select, select.value || other);
    }
  }

  /** Replace the rows by these: `{voice, text}`. */
  set(said) {
    this.list.replaceChildren();
    for (const { text, voice } of said) this.#add(text, voice);
  }

  /** Replace the rows by a script's turns; false if the text is none. */
  read(script) {
    const turns = parse(script);
    if (!turns.length) return false;
    this.list.replaceChildren();
    this.#fill(turns);
    return true;
  }

  #fill(turns) {
    const names = [...new Set(turns.map((turn) => turn.name))];
    for (const { name, text } of turns) {
      const free = this.voices.all[names.indexOf(name) % (this.voices.all.length || 1)]?.id;
      this.#add(text, this.voices.named(name) ?? free);
    }
    this.onChange();
  }

  #add(text = "", voice = null) {
    const row = copyOf("turn");
    this.list.append(row);
    const rows = this.list.children.length;
    this.voices.fill(row.querySelector("select"), voice ?? this.voices.all[(rows - 1) % 2]?.id);
    row.querySelector("textarea").value = text;
    this.#number();
    return row;
  }

  #press(button) {
    const row = button?.closest("li");
    if (!row) return;
    const what = button.dataset.do;
    if (what === "up") row.previousElementSibling?.before(row);
    if (what === "down") row.nextElementSibling?.after(row);
    if (what === "remove") {
      const near = row.nextElementSibling ?? row.previousElementSibling;
      row.remove();
      near?.querySelector("textarea").focus();
    } else this.#keepFocus(row, button);
    this.#number();
    this.onChange();
  }

  /** The pressed button, or its counterpart once the row is at the edge. */
  #keepFocus(row, button) {
    this.#number();
    const other = { up: "down", down: "up" }[button.dataset.do];
    (button.disabled ? row.querySelector(`[data-do="${other}"]`) : button).focus();
  }

  #number() {
    const rows = [...this.list.children];
    rows.forEach((row, index) => {
      const [up, down, remove] = row.querySelectorAll("button");
      label(up, `Move turn ${index + 1} up`);
      label(down, `Move turn ${index + 1} down`);
      label(remove, `Remove turn ${index + 1}`);
      up.disabled = index === 0;
      down.disabled = index === rows.length - 1;
      remove.disabled = rows.length === 1;
      row.querySelector("select").setAttribute("aria-label", `Voice of turn ${index + 1}`);
      row.querySelector("textarea").setAttribute("aria-label", `Text of turn ${index + 1}`);
      row.querySelector("textarea").placeholder = "What this speaker says.";
    });
  }

  /** A pasted script of several turns becomes rows; anything else is pasted as usual. */
  #paste(event) {
    const turns = parse(event.clipboardData?.getData("text") ?? "");
    const row = event.target.closest("li");
    if (turns.length < 2 || !row) return;
    event.preventDefault();
    if (!row.querySelector("textarea").value.trim()) row.remove();
    this.#fill(turns);
  }
}

/** Turns of a script; a line without a name goes on with the turn before. */
function parse(script) {
  const turns = [];
  for (const line of script.split(/\r?\n/)) {
    const [, tag, name, text] = TURN.exec(line) ?? [];
    if (text !== undefined) turns.push({ name: tag ?? name, text });
    else if (line.trim() && turns.length) turns.at(-1).text += ` ${line.trim()}`;
    else if (line.trim()) return [];
  }
  return turns;
}
