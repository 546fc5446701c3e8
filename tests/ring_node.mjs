// Runs the player's ring under node, without a browser, and prints what it did as one line of JSON for test_ring.py.
// Usage: node --expose-gc ring_node.mjs PATH_OF_RING_JS

import fs from "node:fs";

const RATE = 44100;
const QUANTUM = 128;
let Ring;
globalThis.sampleRate = RATE;
globalThis.currentTime = 0;
globalThis.registerProcessor = (_, kind) => { Ring = kind; };
globalThis.AudioWorkletProcessor = class {
  constructor() {
    this.told = [];
    this.port = { postMessage: (message) => this.told.push(message) };
  }
};
(0, eval)(fs.readFileSync(process.argv[2], "utf8"));

let seed = 12345;
const random = () => (seed = (seed * 1103515245 + 12345) & 0x7fffffff) / 0x7fffffff;

function make(options = {}) {
  const processorOptions = { channels: 1, capacity: 4 * RATE, prebuffer: 4096, lead: 8192, capture: false, ...options };
  const ring = new Ring({ processorOptions });
  const { channels } = processorOptions;
  const out = Array.from({ length: channels }, () => []);
  let seq = 0;
  const say = (message) => ring.port.onmessage({ data: message });
  return {
    ring, out, say,
    push: (x, more = {}) => say({ t: "pcm", seq: seq++, hole: 0, x: Float32Array.from(x), ...more }),
    skip: (packets) => { seq += packets; },
    run: (quanta) => {
      let alive = true;
      for (let i = 0; i < quanta; i += 1) {
        const block = Array.from({ length: channels }, () => new Float32Array(QUANTUM));
        alive = ring.process([], [block]);
        block.forEach((channel, c) => out[c].push(...channel));
      }
      return alive;
    },
    stats: () => {
      ring.told.length = 0;
      say({ t: "stats", id: 1 });
      return ring.told[0];
    },
  };
}

const sine = (from, frames, hz = 440, size = 0.5) =>
  Array.from({ length: frames }, (_, i) => Math.fround(size * Math.sin((2 * Math.PI * hz * (from + i)) / RATE)));

// The largest second difference, which is what a click is, in units of the sine's own.
function roughness(samples, hz = 440, size = 0.5) {
  let most = 0;
  for (let i = 1; i < samples.length - 1; i += 1) most = Math.max(most, Math.abs(samples[i - 1] - 2 * samples[i] + samples[i + 1]));
  return most / (size * ((2 * Math.PI * hz) / RATE) ** 2);
}

const plain = ({ captured, ...rest }) => rest;
const loud = (samples, from) => samples.findIndex((x, i) => i >= from && x !== 0);
const results = {};

{ // samples leave as they came
  const { ring, out, push, run, say, stats } = make({ channels: 2, capacity: 8192, prebuffer: 256 });
  const sent = [[], []];
  for (let i = 0; i < 200000 / QUANTUM; i += 1) {
    while (ring.write - ring.read < 3000) {
      const frames = 1 + Math.floor(random() * 700);
      const x = Array.from({ length: 2 * frames }, () => Math.fround(random() - 0.5));
      for (let j = 0; j < frames; j += 1) { sent[0].push(x[2 * j]); sent[1].push(x[2 * j + 1]); }
      push(x);
    }
    run(1);
  }
  say({ t: "end" });
  run(40);
  let wrong = 0;
  for (const c of [0, 1]) sent[c].forEach((x, i) => { wrong += x !== out[c][i]; });
  results.exact = { ...plain(stats()), wrong, sent: sent[0].length };
}

{ // running dry: a tail, silence, a rise; nothing of it clicks
  const { out, push, run, say, stats } = make({ prebuffer: 2048 });
  const first = 2048 + 60;
  push(sine(0, first));
  run(40);
  const dry = plain(stats());
  const silentFrom = out[0].length;
  push(sine(first, 1000));
  run(4);
  const below = out[0].slice(silentFrom).every((x) => x === 0);
  push(sine(first + 1000, 3000));
  run(20);
  say({ t: "end" });
  run(60);
  const tail = out[0].slice(first, first + 221);
  results.dry = {
    ...plain(stats()), dry, below, roughness: roughness(out[0]), tailMoves: tail.some((x) => x !== 0),
    silentAfterTail: out[0].slice(first + 221, silentFrom).every((x) => x === 0),
  };
}

{ // pausing: every sample is used up once, and only while playing
  const { out, push, run, say, stats } = make({ capture: true, prebuffer: 1024 });
  const sent = sine(0, 30000);
  push(sent);
  run(50);
  say({ t: "pause" });
  const at = out[0].length;
  run(100);
  const paused = plain(stats());
  const silentIn = out[0].slice(at).findLastIndex((x) => x !== 0) + 1;
  say({ t: "resume" });
  run(60);
  say({ t: "pause" });
  run(1); // shorter than the tail: what is left of it is laid over the rise
  say({ t: "resume" });
  say({ t: "end" });
  run(200);
  const { captured, ...rest } = stats();
  results.pause = {
    ...rest, paused, silentIn, same: captured.length === sent.length && sent.every((x, i) => x === captured[i]),
    roughness: roughness(out[0].slice(1)),
  };
}

{ // a pause before anything was heard leaves the first samples as they are
  const { out, push, run, say } = make({ prebuffer: 256 });
  say({ t: "pause" });
  push(sine(1000, 2000));
  run(10);
  const silent = out[0].every((x) => x === 0);
  say({ t: "resume" });
  run(8);
  const from = loud(out[0], 0);
  results.pausedFirst = { silent, exact: sine(1000, 800).every((x, i) => x === out[0][from + i]) };
}

{ // lost packets are counted and stood for by silence of their length, without a click; late ones are ignored
  const { out, push, run, say, skip, stats } = make({ prebuffer: 2048, capture: true });
  push(sine(0, 3000));
  skip(2);
  push(sine(7000, 3000), { hole: 4000 });
  say({ t: "pcm", seq: 1, hole: 0, x: Float32Array.from([1, 1, 1]) });
  push(sine(10000, 2000));
  say({ t: "end", count: 7 });
  run(200);
  results.lost = { ...plain(stats()), roughness: roughness(out[0]), silence: out[0].slice(3000, 7000).every((x) => x === 0) };
}

{ // more than fits is counted, and what fitted is played
  const { out, push, run, say, stats } = make({ capacity: 1000, prebuffer: 100 });
  push(sine(0, 1500));
  say({ t: "end" });
  run(30);
  results.over = { ...plain(stats()), exact: sine(0, 1000).every((x, i) => x === out[0][i]) };
}

{ // stop: silence within the tail, and the processor goes away once it is closed
  const { out, push, run, say, stats } = make({ prebuffer: 1024 });
  push(sine(0, 20000));
  run(20);
  const at = out[0].length;
  say({ t: "stop" });
  push(sine(20000, 5000));
  run(20);
  const silentIn = out[0].slice(at).findLastIndex((x) => x !== 0) + 1;
  const alive = run(1);
  say({ t: "close" });
  results.stop = { ...plain(stats()), silentIn, alive, closed: run(2), roughness: roughness(out[0].slice(1)) };
}

// Words of 0.5 s with 0.3 s of silence in between, in real time, with `extra` frames of delay that nobody needs.
function talk(options, { extra, seconds, before }) {
  const made = make({ prebuffer: 4410, lead: 8820, ...options });
  const words = (from, frames) => Array.from({ length: frames }, (_, i) => {
    const time = ((from + i) / RATE) % 0.8;
    return time < 0.5 ? Math.fround(0.3 * Math.sin(Math.PI * time / 0.5) * Math.sin(2 * Math.PI * 300 * (from + i) / RATE)) : 0;
  });
  const all = [];
  const send = (frames) => { const x = words(all.length, frames); all.push(...x); made.push(x); };
  send(8820);
  before?.(made, send);
  send(extra);
  for (let i = 0; i < (seconds * RATE) / QUANTUM; i += 1) {
    send(QUANTUM);
    made.run(1);
  }
  const depth = made.ring.write - made.ring.read;
  return { ...plain(made.stats()), depth, roughness: roughness(made.out[0].slice(1), 300, 0.3), all, out: made.out[0] };
}

{ // standing delay is trimmed away in the silences, and nothing that can be heard with it
  const { all, out, ...rest } = talk({}, { extra: 35280, seconds: 24 });
  const heard = (samples) => samples.filter((x) => Math.abs(x) > 0.01);
  const [came, left] = [heard(all), heard(out)];
  results.trim = { ...rest, same: left.every((x, i) => x === came[i]) };
  const kept = talk({ capture: true }, { extra: 35280, seconds: 14 });
  const near = talk({}, { extra: 3000, seconds: 14 });
  const waited = talk({}, { extra: 0, seconds: 14, before: ({ say, run }, send) => { run(40); say({ t: "pause" }); send(40000); run(20); say({ t: "resume" }); } });
  results.notTrimmed = { capture: kept.trims, withinMargin: near.trims, afterPause: waited.trims };
}

{ // nothing is made in process() that would have to be collected
  const { ring, push, say } = make({ channels: 2, capacity: 40 * RATE });
  const block = [[new Float32Array(QUANTUM), new Float32Array(QUANTUM)]];
  ring.port.postMessage = () => {};
  push(new Float32Array(2 * 30 * RATE).fill(0.25));
  for (let i = 0; i < 3000; i += 1) ring.process([], block);
  globalThis.gc();
  const before = process.memoryUsage().heapUsed;
  const calls = 7000;
  for (let i = 0; i < calls; i += 1) ring.process([], block);
  results.memory = { bytesPerCall: (process.memoryUsage().heapUsed - before) / calls, played: plain(ring.report()).played };
  say({ t: "stop" });
}

console.log(JSON.stringify(results));
