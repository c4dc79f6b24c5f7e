// The microphone: a recording as WAV, its loudness shown while it lasts.

import { Refusal } from "./api.js";
import { decoded } from "./sound.js";

const TICK = 100; // milliseconds between two looks at the loudness
const AS_IT_IS = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
const WHY_NOT = {
  NotAllowedError: "The browser was not allowed to use the microphone.",
  NotFoundError: "There is no microphone.",
};

export class Recorder {
  constructor(meter) {
    this.meter = meter;
    this.running = null;
  }

  /**
   * Record until `stop()` or `longest` seconds. `onTick(seconds, started)` follows it.
   *
   * Returns a WAV blob, or null after `cancel()`.
   */
  async record(longest, onTick) {
    const stream = await microphone();
    const running = new MediaRecorder(stream);
    const context = new AudioContext();
    const ear = new AnalyserNode(context, { fftSize: 2048 });
    new MediaStreamAudioSourceNode(context, { mediaStream: stream }).connect(ear);
    const began = performance.now();
    onTick(0, true);
    const clockwork = setInterval(() => {
      const seconds = (performance.now() - began) / 1000;
      this.meter.value = loudness(ear);
      onTick(seconds, false);
      if (seconds >= longest) this.stop();
    }, TICK);
    try {
      this.running = running;
      const blob = await recorded(running);
      return this.cancelled ? null : (await decoded(blob)).blob;
    } finally {
      clearInterval(clockwork);
      this.running = null;
      this.cancelled = false;
      stream.getTracks().forEach((track) => track.stop());
      context.close();
    }
  }

  stop() {
    if (this.running?.state === "recording") this.running.stop();
  }

  cancel() {
    this.cancelled = this.running !== null;
    this.stop();
  }
}

async function microphone() {
  if (!navigator.mediaDevices) {
    throw new Refusal("The browser records only on 127.0.0.1 or over https: choose a file instead.");
  }
  try {
    return await navigator.mediaDevices.getUserMedia({ audio: AS_IT_IS });
  } catch (error) {
    throw new Refusal(WHY_NOT[error.name] ?? "The microphone cannot be used.");
  }
}

function recorded(recorder) {
  const parts = [];
  return new Promise((done) => {
    recorder.ondataavailable = (event) => parts.push(event.data);
    recorder.onstop = () => done(new Blob(parts, { type: recorder.mimeType }));
    recorder.start();
  });
}

/** Root mean square on a scale on which speech fills the middle. */
function loudness(ear) {
  const wave = new Float32Array(ear.fftSize);
  ear.getFloatTimeDomainData(wave);
  const power = wave.reduce((sum, x) => sum + x * x, 0) / wave.length;
  return Math.min(1, Math.max(0, 1 + (10 * Math.log10(power + 1e-9)) / 60)); // -60 dBFS is 0
}
