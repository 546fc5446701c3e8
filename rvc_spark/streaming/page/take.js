// What has come so far, as a file: kept as Blobs, which browsers move out of memory, in the format that was sent.

const PART_BYTES = 1 << 20;
const TAKE_LIMIT = 1 << 30; // bytes; two hours of speech in 16 bits

class PageTake {
  constructor({ rate, channels, title }) {
    Object.assign(this, { rate, channels, title: title || "rvc spark" });
    this.parts = [];
    this.open = [];
    this.openBytes = this.bytes = 0;
    this.cut = false;
  }

  // bytes: Uint8Array of interleaved samples, kept as it is; hole: frames of silence before it
  add(bytes, format, hole) {
    this.format ??= format;
    if (format !== this.format) bytes = this.recoded(bytes, format);
    if (hole) this.push(new Uint8Array(hole * this.channels * this.width));
    this.push(bytes);
  }

  get width() { return this.format === "f32" ? 4 : 2; }

  get seconds() { return this.bytes / (this.width * this.channels * this.rate); }

  recoded(bytes, format) {
    const samples = samplesOf(bytes, format);
    if (this.format === "f32") return new Uint8Array(samples.buffer);
    return new Uint8Array(Int16Array.from(samples, (x) => Math.round(Math.max(-1, Math.min(1, x)) * 32767)).buffer);
  }

  push(bytes) {
    this.cut ||= this.bytes + bytes.length > TAKE_LIMIT;
    if (this.cut) return;
    this.open.push(bytes);
    this.openBytes += bytes.length;
    this.bytes += bytes.length;
    if (this.openBytes >= PART_BYTES) {
      this.parts.push(new Blob(this.open));
      this.open = [];
      this.openBytes = 0;
    }
  }

  // A WAV file of what is there; the name says whether that is all of it.
  file(complete) {
    const whole = complete && !this.cut;
    const name = this.title.replace(/[^\p{L}\p{N} ._-]+/gu, " ").replace(/\s+/g, " ").trim().slice(0, 60) || "rvc spark";
    const length = whole ? "" : ` (first ${this.seconds.toFixed(1)} s)`;
    return new File([this.header(), ...this.parts, ...this.open], `${name}${length}.wav`, { type: "audio/wav" });
  }

  header() {
    const { rate, channels, width, bytes } = this;
    const float = this.format === "f32";
    const view = new DataView(new ArrayBuffer(44));
    const word = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
    word(0, "RIFF"); view.setUint32(4, 36 + bytes, true); word(8, "WAVEfmt ");
    view.setUint32(16, 16, true); view.setUint16(20, float ? 3 : 1, true); view.setUint16(22, channels, true);
    view.setUint32(24, rate, true); view.setUint32(28, rate * channels * width, true);
    view.setUint16(32, channels * width, true); view.setUint16(34, 8 * width, true);
    word(36, "data"); view.setUint32(40, bytes, true);
    return view.buffer;
  }
}

// Hosts hand binary messages on as DataView (Jupyter), Uint8Array (Colab) or ArrayBuffer (a websocket, Shiny).
function bytesOf(buffer) {
  if (buffer instanceof ArrayBuffer) return new Uint8Array(buffer);
  return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
}

// Float32Array of its own memory, whatever the alignment of the bytes; i16 is exact in f32.
function samplesOf(bytes, format) {
  const own = bytes.slice().buffer;
  if (format === "f32") return new Float32Array(own);
  const whole = new Int16Array(own);
  const samples = new Float32Array(whole.length);
  for (let i = 0; i < whole.length; i += 1) samples[i] = whole[i] / 32768;
  return samples;
}
