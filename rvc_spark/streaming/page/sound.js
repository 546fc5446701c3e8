// Where the page's sound goes: the ring on the sound thread, or timed buffers where no worklet can be loaded.
//
// Both take {seq, hole, samples, frames} in order, know how much room they have, and report
// {played, position, buffered, state, underruns, ...} (frames) whenever something happened. Neither uses timers for
// sound: a page in the background gets few of them.

const RING_SECONDS = 20; // what the ring holds; more waits in the page
const FADE = 0.005;
const AHEAD_OF_CLOCK = 0.03; // a timed buffer is handed over this long before it sounds

const worklets = new WeakMap(); // AudioContext -> promise of the loaded ring

function loadRing(context) {
  if (!worklets.has(context)) worklets.set(context, addRing(context));
  return worklets.get(context);
}

// blob: works in every notebook; data: where a page's rules allow only that one.
async function addRing(context) {
  if (!globalThis.isSecureContext || !context.audioWorklet) throw new Error("no AudioWorklet in this page");
  const blob = URL.createObjectURL(new Blob([RING_SOURCE], { type: "text/javascript" }));
  try {
    await context.audioWorklet.addModule(blob);
  } catch {
    await context.audioWorklet.addModule(`data:text/javascript;charset=utf-8,${encodeURIComponent(RING_SOURCE)}`);
  } finally {
    URL.revokeObjectURL(blob);
  }
}

// An AudioContext at the stream's rate, or at its own where the browser refuses that one.
function makeContext(rate) {
  try {
    return new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
  } catch {
    return new AudioContext({ latencyHint: "interactive" });
  }
}

async function openOutput(context, run, report) {
  if (context.sampleRate === run.rate) {
    try {
      await loadRing(context);
      return new RingOutput(context, run, report);
    } catch (error) {
      console.info(`rvc_spark: sound is played in timed buffers (${error.message || error})`);
    }
  }
  return new TimedOutput(context, run, report);
}

class RingOutput {
  constructor(context, run, report) {
    this.mode = "worklet";
    this.capacity = Math.round(RING_SECONDS * run.rate);
    this.end = 0; // frames handed over
    this.last = { state: "waiting", played: 0, position: 0, buffered: 0, at: context.currentTime };
    this.asked = new Map();
    const { channels, capture } = run;
    const prebuffer = Math.round(run.prebuffer * run.rate);
    const processorOptions = { channels, capture, capacity: this.capacity, prebuffer, lead: Math.round(run.lead * run.rate) };
    this.node = new AudioWorkletNode(context, "rvc-spark-ring", {
      numberOfInputs: 0, outputChannelCount: [channels], processorOptions,
    });
    this.node.port.onmessage = ({ data }) => {
      this.last = data;
      if (data.t === "stats") {
        this.asked.get(data.id)?.(data);
        this.asked.delete(data.id);
      } else report(data);
    };
    this.node.connect(context.destination);
  }

  room() { return this.capacity - (this.end - this.last.position); }

  push({ seq, hole, samples, frames }) {
    this.end += frames + hole;
    this.node.port.postMessage({ t: "pcm", seq, hole, x: samples }, [samples.buffer]);
  }

  finish(count) { this.node.port.postMessage({ t: "end", count }); }
  pause() { this.node.port.postMessage({ t: "pause" }); }
  resume() { this.node.port.postMessage({ t: "resume" }); }
  keep() { this.node.port.postMessage({ t: "keep" }); }
  stop() { this.node.port.postMessage({ t: "stop" }); }

  close() {
    this.node.port.postMessage({ t: "close" });
    setTimeout(() => this.node.disconnect(), 100); // its tail of 5 ms is over
  }

  stats() {
    const id = Math.random();
    return new Promise((resolve) => {
      this.asked.set(id, resolve);
      this.node.port.postMessage({ t: "stats", id });
      setTimeout(() => resolve(this.last), 2000); // a suspended context may not answer
    });
  }
}

// Every packet is a buffer of its own, started on the sample where the one before ends.
class TimedOutput {
  constructor(context, run, report) {
    Object.assign(this, { mode: "source", context, run, report });
    this.gain = context.createGain();
    this.gain.connect(context.destination);
    this.kept = []; // packets not yet played to their end: {at, frames, buffer, source, time}
    this.next = 0; // of `kept`: the first one not started yet
    this.end = this.position = 0;
    this.state = "waiting";
    this.count = { recv: 0, underruns: 0, silent: 0, overrun: 0, trims: 0, trimmed: 0 };
  }

  get last() { return this.snapshot(); }

  room() { return RING_SECONDS * this.run.rate - (this.end - this.now()); }

  push({ hole, samples, frames }) {
    if (this.state === "stopped") return;
    this.count.recv += 1;
    const { channels, rate } = this.run;
    const buffer = this.context.createBuffer(channels, frames, rate);
    for (let c = 0; c < channels; c += 1) {
      const channel = buffer.getChannelData(c);
      for (let i = 0, j = c; i < frames; i += 1, j += channels) channel[i] = samples[j];
    }
    this.kept.push({ at: this.end + hole, frames, buffer });
    this.end += hole + frames;
    this.advance();
  }

  // The stream's frame that sounds now.
  now() {
    if (this.state !== "playing") return this.position;
    const frames = Math.round((this.context.currentTime - this.clock) * this.run.rate);
    return Math.min(Math.max(this.position, this.origin + frames), this.end);
  }

  advance() {
    if (this.state === "playing") this.checkDry();
    const { prebuffer, rate } = this.run;
    if (this.state === "waiting" && this.end > this.position && (this.complete || this.end - this.position >= prebuffer * rate)) this.begin();
    if (this.state === "playing") while (this.next < this.kept.length) this.schedule(this.kept[this.next++]);
    this.tick();
  }

  begin() {
    this.state = "playing";
    this.origin = this.position;
    const { currentTime, sampleRate } = this.context;
    this.clock = Math.ceil((currentTime + AHEAD_OF_CLOCK) * sampleRate) / sampleRate; // on a sample, or each is blurred
    if (this.hushed) this.ramp(0, 1, this.clock);
    this.hushed = false;
    this.tick(true);
  }

  schedule(packet) {
    const begun = Math.max(0, this.position - packet.at);
    const time = this.clock + (packet.at + begun - this.origin) / this.run.rate;
    const source = this.context.createBufferSource();
    source.buffer = packet.buffer;
    source.connect(this.gain);
    source.onended = () => { if (packet.source === source) this.played(packet); };
    source.start(time, begun / this.run.rate);
    packet.source = source;
    this.tail?.stop();
    this.tail = this.makeTail(packet.buffer, time + (packet.frames - begun) / this.run.rate);
  }

  // What sounds if no other packet comes in time: the last samples turned about their end, falling.
  makeTail(buffer, time) {
    const frames = Math.max(1, Math.round(FADE * this.run.rate));
    const tail = this.context.createBuffer(buffer.numberOfChannels, frames, this.run.rate);
    for (let c = 0; c < buffer.numberOfChannels; c += 1) {
      const from = buffer.getChannelData(c);
      const to = tail.getChannelData(c);
      const end = from.length - 1;
      for (let i = 0; i < frames; i += 1) {
        const value = end - 1 - i >= 0 ? 2 * from[end] - from[end - 1 - i] : from[end];
        to[i] = value * (0.5 + 0.5 * Math.cos((Math.PI * (i + 1)) / (frames + 1)));
      }
    }
    const source = this.context.createBufferSource();
    source.buffer = tail;
    source.connect(this.gain);
    source.start(time);
    return source;
  }

  played(packet) {
    this.kept.splice(0, this.kept.indexOf(packet) + 1);
    this.next = Math.max(0, this.kept.findIndex((one) => !one.source));
    if (!this.kept.some((one) => !one.source)) this.next = this.kept.length;
    this.advance();
  }

  checkDry() {
    const over = this.clock + (this.end - this.origin) / this.run.rate;
    if (this.context.currentTime < over - 0.001) {
      if (this.kept.length > this.next && this.lateFor(this.kept[this.next])) this.dry(this.kept[this.next].at);
      return;
    }
    this.dry(this.end);
  }

  lateFor(packet) {
    return this.clock + Math.max(0, packet.at - this.origin) / this.run.rate < this.context.currentTime;
  }

  dry(position) {
    this.position = position;
    this.hushed = true;
    if (this.complete && position >= this.end) this.state = "finished";
    else { this.state = "waiting"; this.count.underruns += 1; }
    this.tick(true);
  }

  ramp(from, to, time) {
    this.gain.gain.cancelScheduledValues(0);
    this.gain.gain.setValueAtTime(from, time);
    this.gain.gain.linearRampToValueAtTime(to, time + FADE);
  }

  // Fall silent in 5 ms; what was heard while falling is heard again afterwards.
  hush(state) {
    this.position = this.now();
    this.state = state;
    this.hushed = true;
    this.ramp(1, 0, this.context.currentTime);
    const silent = this.context.currentTime + 2 * FADE;
    for (const packet of this.kept) { packet.source?.stop(silent); packet.source = undefined; }
    this.tail?.stop(silent);
    this.tail = undefined;
    this.kept = this.kept.filter((packet) => packet.at + packet.frames > this.position);
    this.next = 0;
    this.tick(true);
  }

  pause() { if (this.state === "playing" || this.state === "waiting") this.hush("paused"); }

  resume() {
    if (this.state !== "paused") return;
    this.state = "waiting";
    this.advance();
  }

  keep() {}

  finish() {
    this.complete = true;
    if (this.state === "waiting" && this.end === this.position) this.state = "finished";
    this.advance();
  }

  stop() {
    this.hush("stopped");
    this.kept = [];
    this.end = this.position;
  }

  close() {
    this.stop();
    setTimeout(() => this.gain.disconnect(), 100);
  }

  snapshot() {
    const position = this.now();
    const { state, count } = this;
    return { ...count, played: position, position, buffered: this.end - position, state, at: this.context.currentTime };
  }

  tick(now = false) {
    if (!now && this.context.currentTime - (this.told ?? -1) < 0.25) return;
    this.told = this.context.currentTime;
    this.report(this.snapshot());
  }

  async stats() { return this.snapshot(); }
}
