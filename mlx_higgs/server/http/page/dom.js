// Small things every part of the page needs.

export const $ = (id) => document.getElementById(id);

/** A copy of a template's only element. */
export function copyOf(id) {
  return $(id).content.firstElementChild.cloneNode(true);
}

export function setIcon(button, name) {
  button.querySelector("use").setAttribute("href", `#i-${name}`);
}

export function label(button, words) {
  button.setAttribute("aria-label", words);
  button.title = words;
}

/** Seconds as 1:05.2. */
export function clock(seconds) {
  const tenths = Math.floor(seconds * 10 + 1e-6);
  const rest = String(Math.floor(tenths / 10) % 60).padStart(2, "0");
  return `${Math.floor(tenths / 600)}:${rest}.${tenths % 10}`;
}

/** Say something in a live region; "" empties it. A calm word is not an error. */
export function tell(region, words, calm = false) {
  region.classList.toggle("calm", calm);
  if (region.textContent !== words) region.textContent = words;
}

/** Offer bytes as a file. */
export function saveAs(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Open a window over the page; its returnValue once it is closed. */
export function ask(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue), { once: true });
  });
}
