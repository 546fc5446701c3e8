// The ring of the live player, on the browser's sound thread: what comes in packets leaves in quanta of 128 frames.
//
// Samples leave bit-equal to those that came. They are altered in one case only: where sound begins again after a
// silence (resumed, refilled, a hole, a trim) its first 5 ms rise. Where sound stops, nothing of what is still to come
// is used up: a tail of 5 ms is laid over the silence instead, made of the next samples where there are any, and of
// the last ones turned about their end point where there are none:
//
//      samples  ....··''''|            the tail continues value and slope, so there is no click,
//      tail               |''··..__    and fades out
//
// Stopping, pausing, running dry and skipping are all "lay a tail, then stand or jump". process() allocates nothing.

const FADE_SECONDS = 0.005;
const TICK_SECONDS = 0.25; // how often the page hears of the state
const NEAR_SILENCE = 0.003; // -50 dBFS: below it a skipped piece is not missed
const TRIM_WINDOW = 10; // seconds over which the depth must never have fallen to the target
const TRIM_MARGIN_SECONDS = 0.15; // ordinary jitter
const TRIM_LOOK = 4096; // frames searched for silence in one quantum
const CAPTURE_PART = 1 << 16;

class Ring extends AudioWorkletProcessor {
  // processorOptions: channels, capacity, prebuffer, lead (frames), capture (keep what is played; a test's business)
  constructor({ processorOptions }) {
    super();
    const { channels, capacity, prebuffer, lead, capture } = processorOptions;
    const fade = Math.max(1, Math.round(sampleRate * FADE_SECONDS));
    Object.assign(this, { channels, capacity, prebuffer, capture: Boolean(capture), fade });
    this.size = capacity + fade + 1; // the last samples played stay readable: a tail is made of them
    this.store = Array.from({ length: channels }, () => new Float32Array(this.size));
    this.read = this.write = 0; // frames since the beginning
    this.flowing = this.paused = this.complete = this.stopped = this.finished = this.closing = false;
    this.down = Float32Array.from({ length: fade }, (_, i) => 0.5 + 0.5 * Math.cos((Math.PI * (i + 1)) / (fade + 1)));
    this.tail = Array.from({ length: channels }, () => new Float32Array(fade));
    this.tailAt = this.riseAt = fade; // position in the tail and in the rise; `fade` means there is none
    this.tailFrom = 0; // where in this quantum the tail begins
    this.count = { recv: 0, gaps: 0, lost: 0, repeated: 0, underruns: 0, silent: 0, overrun: 0, trims: 0, trimmed: 0 };
    this.nextSeq = 0;
    this.sinceTick = 0;
    this.target = lead || prebuffer; // depth that is wanted; more if a person paused, for that sound was waited for
    this.lowest = new Float64Array(TRIM_WINDOW).fill(Infinity);
    this.forgetDepth();
    this.captured = [];
    this.capturedFrames = 0;
    this.port.onmessage = (event) => this.receive(event.data);
  }

  get state() {
    if (this.stopped) return "stopped";
    if (this.finished) return "finished";
    if (this.paused) return "paused";
    return this.flowing ? "playing" : "waiting";
  }

  receive(message) {
    switch (message.t) {
      case "pcm": this.take(message); break;
      case "end": this.end(message.count); break;
      case "pause": this.pause(); break;
      case "resume": this.paused = false; this.keepDepth(); break;
      case "keep": this.keepDepth(); break; // what waited for a click is not trimmed away
      case "stop": this.stop(); break;
      case "close": this.stop(); this.closing = true; break;
      case "stats": this.port.postMessage({ t: "stats", id: message.id, ...this.report(), captured: this.all() }); return;
    }
    if (message.t !== "pcm") this.tell();
  }

  // ---------------------------------------------------------------- what comes in

  // x: Float32Array interleaved; hole: frames of silence that stand for packets that never came
  take({ seq, hole, x }) {
    if (this.stopped) return;
    if (seq < this.nextSeq) { this.count.repeated += 1; return; }
    this.missed(seq);
    this.nextSeq = seq + 1;
    this.count.recv += 1;
    let frames = x.length / this.channels;
    const room = this.capacity - (this.write - this.read);
    const silence = Math.min(hole || 0, Math.max(0, room - frames));
    if (silence) this.bridge(silence);
    const kept = Math.min(frames, room - silence);
    this.count.overrun += frames - kept + (hole || 0) - silence;
    for (let c = 0; c < this.channels; c += 1) {
      const store = this.store[c];
      let at = this.write % this.size;
      for (let i = 0, j = c; i < kept; i += 1, j += this.channels) {
        store[at] = x[j];
        if (++at === this.size) at = 0;
      }
    }
    if (silence) this.shape(this.write, Math.min(this.fade, kept), true);
    this.write += kept;
  }

  missed(seq) {
    if (seq > this.nextSeq) { this.count.gaps += 1; this.count.lost += seq - this.nextSeq; }
  }

  bridge(frames) {
    const waiting = Math.min(this.fade, this.write - this.read);
    this.shape(this.write - waiting, waiting, false);
    for (const store of this.store) for (let i = 0; i < frames; i += 1) store[(this.write + i) % this.size] = 0;
    this.write += frames;
  }

  // Let the frames from `from` rise from silence, or fall into it.
  shape(from, frames, rising) {
    for (const store of this.store) {
      for (let i = 0; i < frames; i += 1) {
        const gain = this.down[Math.floor((i * this.fade) / frames)];
        store[(from + i) % this.size] *= rising ? 1 - gain : gain;
      }
    }
  }

  end(count) {
    if (Number.isInteger(count)) { this.missed(count); this.nextSeq = Math.max(this.nextSeq, count); }
    this.complete = true;
  }

  // ---------------------------------------------------------------- stopping without a click

  layTail(from) {
    const ahead = this.write - this.read;
    const lastFrame = this.write - 1;
    for (let c = 0; c < this.channels; c += 1) {
      const store = this.store[c];
      const tail = this.tail[c];
      const last = lastFrame < 0 ? 0 : store[lastFrame % this.size];
      for (let i = 0; i < this.fade; i += 1) {
        const mirrored = lastFrame - 1 - (i - ahead);
        let value = last;
        if (i < ahead) value = store[(this.read + i) % this.size];
        else if (mirrored >= 0) value = 2 * last - store[mirrored % this.size];
        if (this.riseAt + i < this.fade) value *= 1 - this.down[this.riseAt + i];
        const before = this.tailAt + i < this.fade ? tail[this.tailAt + i] : 0; // of a tail not yet at its end
        tail[i] = value * this.down[i] + before;
      }
    }
    this.tailAt = 0;
    this.tailFrom = from;
    this.riseAt = 0; // what comes next rises
  }

  stand(from) {
    if (this.flowing) this.layTail(from);
    this.flowing = false;
    this.forgetDepth();
  }

  pause() {
    this.paused = true;
    this.stand(0);
  }

  stop() {
    this.stand(0);
    if (!this.stopped) this.heard = this.read - this.count.trimmed;
    this.stopped = true;
    this.read = this.write;
  }

  runDry(from) {
    this.stand(from);
    if (this.complete) this.finished = true;
    else this.count.underruns += 1;
    this.tell();
  }

  // ---------------------------------------------------------------- delay that nobody needs

  forgetDepth() {
    this.lowest.fill(Infinity);
    this.second = this.secondFrames = this.seconds = 0;
    this.excess = 0;
  }

  keepDepth() {
    this.target = Math.max(this.target, this.write - this.read);
    this.forgetDepth();
  }

  watchDepth(frames) {
    const ahead = this.write - this.read;
    if (ahead < this.lowest[this.second]) this.lowest[this.second] = ahead;
    this.secondFrames += frames;
    if (this.secondFrames < sampleRate) return;
    this.secondFrames = 0;
    this.seconds += 1;
    this.second = (this.second + 1) % TRIM_WINDOW;
    if (this.seconds >= TRIM_WINDOW) {
      let least = Infinity;
      for (let i = 0; i < TRIM_WINDOW; i += 1) if (this.lowest[i] < least) least = this.lowest[i];
      const excess = least - this.target;
      this.excess = excess > TRIM_MARGIN_SECONDS * sampleRate ? excess : 0;
    }
    this.lowest[this.second] = Infinity;
  }

  // Skip near silence, as much as is too deep, with a cross-fade of 5 ms.
  trim() {
    const limit = Math.min(TRIM_LOOK, this.write - this.read, this.excess + this.fade);
    let quiet = 0;
    while (quiet < limit && this.quietAt((this.read + quiet) % this.size)) quiet += 1;
    const skip = quiet - this.fade;
    if (skip < 3 * this.fade) return;
    this.layTail(0);
    this.read += skip;
    this.count.trims += 1;
    this.count.trimmed += skip;
    this.excess -= skip;
    if (this.excess < 3 * this.fade) this.forgetDepth();
  }

  quietAt(index) {
    for (let c = 0; c < this.channels; c += 1) if (Math.abs(this.store[c][index]) > NEAR_SILENCE) return false;
    return true;
  }

  // ---------------------------------------------------------------- what goes out

  process(_, outputs) {
    const out = outputs[0];
    const frames = out[0].length;
    if (!this.flowing && !this.paused && !this.stopped) this.start();
    if (this.excess && this.flowing && !this.capture && !this.complete) this.trim();
    const ready = this.flowing ? Math.min(frames, this.write - this.read) : 0;
    if (ready) this.copy(out, ready);
    if (this.flowing && ready < frames) this.runDry(ready);
    if (this.state === "waiting" && this.read) this.count.silent += frames - ready;
    if (this.flowing) this.watchDepth(frames);
    const sounding = this.tailAt < this.fade;
    if (sounding) this.addTail(out, frames);
    this.sinceTick += frames;
    if (this.sinceTick >= TICK_SECONDS * sampleRate) this.tell();
    return !(this.closing && !sounding);
  }

  start() {
    const ahead = this.write - this.read;
    if (ahead > 0 && (ahead >= this.prebuffer || this.complete)) {
      this.flowing = true;
      this.tell();
    } else if (this.complete && !this.finished) {
      this.finished = true;
      this.tell();
    }
  }

  copy(out, frames) {
    const start = this.read % this.size;
    for (let c = 0; c < out.length; c += 1) {
      const store = this.store[Math.min(c, this.channels - 1)];
      const channel = out[c];
      let at = start;
      for (let i = 0; i < frames; i += 1) {
        channel[i] = store[at];
        if (++at === this.size) at = 0;
      }
      for (let i = 0; i < frames && this.riseAt + i < this.fade; i += 1) channel[i] *= 1 - this.down[this.riseAt + i];
    }
    this.riseAt = Math.min(this.fade, this.riseAt + frames);
    if (this.capture) this.keep(start, frames);
    this.read += frames;
  }

  addTail(out, frames) {
    const length = Math.min(frames - this.tailFrom, this.fade - this.tailAt);
    for (let c = 0; c < out.length; c += 1) {
      const tail = this.tail[Math.min(c, this.channels - 1)];
      for (let i = 0; i < length; i += 1) out[c][this.tailFrom + i] += tail[this.tailAt + i];
    }
    this.tailAt += length;
    this.tailFrom = 0;
  }

  // ---------------------------------------------------------------- what the page hears

  report() {
    const buffered = this.write - this.read;
    const played = this.stopped ? this.heard : this.read - this.count.trimmed;
    return { ...this.count, played, position: this.read, buffered, state: this.state, at: currentTime };
  }

  tell() {
    this.sinceTick = 0;
    this.port.postMessage({ t: "tick", ...this.report() });
  }

  keep(start, frames) {
    for (let i = 0; i < frames; i += 1) {
      const place = this.capturedFrames % CAPTURE_PART;
      if (!place) this.captured.push(new Float32Array(CAPTURE_PART * this.channels));
      const part = this.captured[this.captured.length - 1];
      for (let c = 0; c < this.channels; c += 1) part[place * this.channels + c] = this.store[c][(start + i) % this.size];
      this.capturedFrames += 1;
    }
  }

  all() {
    if (!this.capture) return undefined;
    const joined = new Float32Array(this.capturedFrames * this.channels);
    this.captured.forEach((part, i) => {
      const at = i * CAPTURE_PART * this.channels;
      joined.set(part.subarray(0, joined.length - at), at);
    });
    return joined;
  }
}

registerProcessor("rvc-spark-ring", Ring);
