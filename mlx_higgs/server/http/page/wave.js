// The picture of the sound: loudest sample of every bin, drawn as bars.

const BIN = 480; // samples: 20 ms at 24 kHz
const BAR = 3; // CSS pixels
const GAP = 2;

export class Wave {
  constructor(canvas) {
    this.canvas = canvas;
    this.reset();
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
  }

  reset() {
    this.peaks = [];
    this.filling = { peak: 0, count: 0 };
    this.samples = 0;
    this.span = 0; // samples that the whole width stands for
    this.played = 0; // samples
    this.draw();
  }

  /** Add Int16 samples at the end. */
  add(pcm) {
    const bin = this.filling;
    for (const sample of pcm) {
      bin.peak = Math.max(bin.peak, Math.abs(sample) / 32768);
      if (++bin.count === BIN) {
        this.peaks.push(bin.peak);
        bin.peak = bin.count = 0;
      }
    }
    this.samples += pcm.length;
    this.draw();
  }

  /** Draw at the next frame, once. */
  draw() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.#paint();
    });
  }

  #paint() {
    const { canvas } = this;
    const scale = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const bars = Math.floor((width + GAP) / (BAR + GAP));
    const span = Math.max(this.span, this.samples, 1);
    for (let bar = 0; bar < bars; bar++) {
      const [from, to] = [(bar * span) / bars, ((bar + 1) * span) / bars];
      const known = from < this.samples;
      const tall = known ? Math.max(3, this.#peak(from, to) * (height - 4)) : 2;
      pen.fillStyle = colour(!known ? "--line" : from < this.played ? "--accent" : "--wave");
      pen.beginPath();
      pen.roundRect(bar * (BAR + GAP), (height - tall) / 2, BAR, tall, BAR / 2);
      pen.fill();
    }
  }

  #peak(from, to) {
    const first = Math.floor(from / BIN);
    const end = Math.min(Math.max(first + 1, Math.ceil(to / BIN)), this.peaks.length);
    let peak = 0;
    for (let i = first; i < end; i++) peak = Math.max(peak, this.peaks[i]);
    return peak ** 0.7; // quiet speech stays visible
  }
}
