// Samples as files: WAV is made here, and any clip the browser can decode becomes one.

const REFERENCE_RATE = 24_000; // Hz; what the model's codec listens at

/** Mono 16-bit WAV of a list of Int16Array. */
export function wav(parts, rate) {
  const bytes = 2 * parts.reduce((sum, part) => sum + part.length, 0);
  const head = new DataView(new ArrayBuffer(44));
  const text = (at, word) => [...word].forEach((c, i) => head.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF");
  head.setUint32(4, 36 + bytes, true);
  text(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true); // PCM
  head.setUint16(22, 1, true); // mono
  head.setUint32(24, rate, true);
  head.setUint32(28, 2 * rate, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  text(36, "data");
  head.setUint32(40, bytes, true);
  return new Blob([head.buffer, ...parts], { type: "audio/wav" });
}

/** What the server reads as it is: by its first bytes, as the server does. */
async function isReadable(file) {
  const bytes = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const start = String.fromCharCode(...bytes);
  const mp3 = start.startsWith("ID3") || (bytes[0] === 0xff && (bytes[1] & 0xe6) === 0xe2);
  const riff = start.startsWith("RIFF") && start.endsWith("WAVE");
  return mp3 || riff || start.startsWith("fLaC") || start.startsWith("OggS");
}

/** A clip for the server: the file itself, or what the browser can decode of it as WAV. */
export async function clipOf(file) {
  if (await isReadable(file)) return { blob: file, seconds: await lengthOf(file) };
  return decoded(file);
}

/** Decode, mix to mono and write as WAV; throws if the browser cannot. */
export async function decoded(blob) {
  const sound = await decode(blob);
  const mono = new Float32Array(sound.length);
  for (let c = 0; c < sound.numberOfChannels; c++) {
    const channel = sound.getChannelData(c);
    for (let i = 0; i < mono.length; i++) mono[i] += channel[i] / sound.numberOfChannels;
  }
  const pcm = Int16Array.from(mono, (x) => Math.round(32767 * Math.max(-1, Math.min(1, x))));
  return { blob: wav([pcm], sound.sampleRate), seconds: sound.duration };
}

async function lengthOf(file) {
  try {
    return (await decode(file)).duration;
  } catch {
    return null; // the server may still read it
  }
}

async function decode(blob) {
  const context = new OfflineAudioContext(1, 1, REFERENCE_RATE); // resamples while decoding
  return context.decodeAudioData(await blob.arrayBuffer());
}
