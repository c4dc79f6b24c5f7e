// What was made in this session: kept in memory, gone with the page.

import { $, clock, copyOf, label } from "./dom.js";

const MOST_SECONDS = 3600; // of speech kept: 173 MB at 24 kHz; the oldest go first

export class Takes {
  /** @param {{onOpen, onAgain, onGone}} actions each gets the take */
  constructor(actions) {
    this.actions = actions;
    this.all = []; // newest first
    $("forget").addEventListener("click", () => {
      const gone = this.all;
      this.all = [];
      gone.forEach((take) => actions.onGone(take));
      this.#draw();
      $("words").focus();
    });
  }

  add(take) {
    this.all.unshift(take);
    let seconds = 0;
    this.all = this.all.filter((kept, index) => {
      seconds += kept.seconds;
      return index === 0 || seconds <= MOST_SECONDS;
    });
    this.now = take;
    this.#draw();
  }

  /** Mark the take that is on the stage. */
  mark(take) {
    this.now = take;
    this.#draw();
  }

  #draw() {
    $("history").hidden = !this.all.length;
    $("takes").replaceChildren(...this.all.map((take) => this.#row(take)));
  }

  #row(take) {
    const row = copyOf("take");
    row.classList.toggle("now", take === this.now);
    const [name, about] = row.querySelectorAll("p span");
    name.textContent = take.title;
    about.textContent = [clock(take.seconds), take.voice, `seed ${take.seed}`, take.note]
      .filter(Boolean)
      .join(" · ");
    const [play, again, remove] = row.querySelectorAll("button");
    label(play, `Play “${take.title}”`);
    play.addEventListener("click", () => this.actions.onOpen(take));
    label(again, `Take over text, voice and seed of “${take.title}”`);
    again.addEventListener("click", () => this.actions.onAgain(take));
    label(remove, `Remove “${take.title}”`);
    remove.addEventListener("click", () => this.#remove(take));
    return row;
  }

  #remove(take) {
    this.all = this.all.filter((kept) => kept !== take);
    this.actions.onGone(take);
    this.#draw();
    (this.all.length ? $("forget") : $("words")).focus();
  }
}
