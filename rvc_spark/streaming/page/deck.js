// One player's transport: messages come in, sound goes out, faces are told. It knows neither widgets nor pages.
//
// Nothing is assumed of the sender: it may be silent for minutes, and what it hears from here may reach it late or
// never. So every packet is taken at once, and what the ring has no room for waits in `queue`, however much it is.

const LONGEST_HOLE = 2; // seconds of silence that stand for lost packets
const EARLY_PACKETS = 600; // kept if they come before the message that opens their run
const BLOCKED_AFTER = 700; // ms until a context that does not start counts as blocked
const IDLE_CLOSE = 3000; // ms after the end until the sound device is given back
const DONE = ["finished", "stopped"];

class Deck {
  constructor(send) {
    this.tellSender = send;
    this.faces = new Set();
    this.early = [];
    this.state = "idle";
    this.onGesture = () => this.unblock();
    this.onLeave = () => this.leave();
    globalThis.addEventListener?.("pagehide", this.onLeave);
  }

  // ---------------------------------------------------------------- messages

  receive(message, buffers = []) {
    if (message.t === "open") return this.open(message);
    if (!this.run || message.run > this.run.run) return this.keepEarly(message, buffers);
    if (message.run !== this.run.run) return undefined;
    switch (message.t) {
      case "pcm": return this.take(message, buffers);
      case "end": return this.end(message);
      case "stop": return this.stop(false);
      case "pause": return this.pause(false);
      case "resume": return this.resume(false);
      case "words": this.words = { ...this.words, ...message }; return this.show();
      default: return undefined;
    }
  }

  keepEarly(message, buffers) {
    if (this.early.length < EARLY_PACKETS) this.early.push([message, buffers]);
    if (this.early.length === 1) this.tell(this.unopened());
  }

  // Asks for the message that opens the run, should it have been lost.
  unopened() { return { t: "ready", mode: "none", rate: 0, state: "unopened", secure: this.secure }; }

  get secure() { return Boolean(globalThis.isSecureContext); }

  tell(message) { this.tellSender({ run: this.run?.run ?? null, ...message }); }

  open(message) {
    if (this.run && message.run <= this.run.run) return;
    this.output?.close();
    this.output = this.opening = undefined;
    this.run = { channels: 1, lead: 0.3, prebuffer: 0.2, title: "", capture: false, ...message };
    this.queue = [];
    this.queued = this.frames = this.nextStart = this.nextSeq = 0;
    this.count = { recv: 0, gaps: 0, lost: 0, repeated: 0 };
    this.take_ = new PageTake(this.run);
    this.track = new Track(this.run);
    this.words = { status: "", progress: null, gaps: [] };
    this.held = this.over = this.final = undefined;
    this.state = "waiting";
    this.faces.forEach((face) => face.open());
    if (this.faces.size) this.start();
    const early = this.early;
    this.early = [];
    const whole = early.find(([late]) => late.t === "pcm")?.[0].seq === 0; // or else what is missing would be lost twice
    if (whole) early.forEach(([late, buffers]) => this.receive(late, buffers));
    this.show();
  }

  take(message, buffers) {
    if (this.state === "stopped") return;
    const { seq, start, fmt } = message;
    if (seq < this.nextSeq) { this.count.repeated += 1; return; }
    this.missed(seq);
    this.nextSeq = seq + 1;
    this.count.recv += 1;
    const bytes = bytesOf(buffers[0]);
    const samples = samplesOf(bytes, fmt);
    const frames = samples.length / this.run.channels;
    const hole = Math.min(Math.max(0, start - this.nextStart), Math.round(LONGEST_HOLE * this.run.rate));
    this.nextStart = start + frames;
    this.frames += hole;
    this.take_.add(bytes.slice(), fmt, hole);
    this.track.add(this.frames, samples, message.cols || 0, buffers, hole);
    this.frames += frames;
    this.queue.push({ seq: this.count.recv - 1, hole, samples, frames });
    this.queued += frames + hole;
    this.flush();
  }

  missed(seq) {
    if (seq > this.nextSeq) { this.count.gaps += 1; this.count.lost += seq - this.nextSeq; }
  }

  end({ count }) {
    if (Number.isInteger(count)) { this.missed(count); this.nextSeq = Math.max(this.nextSeq, count); }
    this.over = true;
    this.flush();
  }

  flush() {
    if (!this.output) return;
    while (this.queue.length && this.output.room() >= this.queue[0].frames + this.queue[0].hole) {
      const packet = this.queue.shift(); // first, for handing it over may report, and come back here
      this.queued -= packet.frames + packet.hole;
      this.output.push(packet);
    }
    if (this.over && !this.queue.length && !this.told) {
      this.told = true;
      this.output.finish(this.count.recv);
    }
  }

  // ---------------------------------------------------------------- sound

  // Begins when there is something to see it by: a hidden model makes no sound, and hosts that show a cell twice make one.
  async start() {
    const { run } = this;
    if (!run || this.opening === run || DONE.includes(this.state)) return;
    this.opening = run;
    this.told = false;
    this.claim();
    if (this.context && (this.context.state === "closed" || this.context.sampleRate !== run.rate)) this.dropContext();
    if (!this.context) {
      this.context = makeContext(run.rate);
      this.context.onstatechange = () => this.checkBlocked();
    }
    const output = await openOutput(this.context, run, (report) => this.heard(run, report));
    if (this.run !== run || DONE.includes(this.state)) { output.close(); return; }
    this.output = output;
    if (this.held) output.pause();
    else this.wake();
    setTimeout(() => this.checkBlocked(), BLOCKED_AFTER);
    this.announce();
    this.flush();
  }

  announce() {
    const mode = this.output?.mode ?? "none";
    this.tell({ t: "ready", mode, rate: this.context?.sampleRate ?? 0, state: this.context?.state ?? "none", secure: this.secure });
  }

  wake() {
    this.context?.resume?.().catch(() => undefined); // stays pending while the browser waits for a click
  }

  // One player of a page sounds at a time; the newest wins, and the other can be resumed where it was.
  claim() {
    const other = globalThis.rvcSparkSpeaking;
    if (other && other !== this) other.pause(true);
    globalThis.rvcSparkSpeaking = this;
  }

  heard(run, report) {
    if (this.run !== run || !this.output || this.gone === run) return; // the good-bye is the last word
    this.flush();
    if (this.state === "stopped") return;
    const before = this.state;
    this.state = this.held ? "paused" : this.blocked ? "blocked" : report.state;
    if (this.state === "finished" && this.queue.length) this.state = "waiting";
    if (this.state === "playing" || this.state !== before) this.tell({ t: "tick", ...this.summary(report), level: this.level() });
    if (this.state === "finished" && before !== "finished") this.finish(report);
    this.show();
  }

  summary(report) {
    const { played, underruns } = report;
    const { gaps, lost } = this.count;
    return { played, buffered: report.buffered + this.queued, underruns, gaps, lost, state: this.state };
  }

  finish(report) {
    this.tell({ t: "ended", ...this.summary(report) });
    this.rest();
  }

  // Give the sound device back a while after the end.
  rest() {
    const { run } = this;
    setTimeout(async () => {
      if (this.run !== run || !DONE.includes(this.state) || run.capture) return;
      this.final = await this.stats();
      if (this.run === run) this.dropContext();
    }, IDLE_CLOSE);
  }

  dropContext() {
    this.output?.close();
    this.output = undefined;
    const { context } = this;
    this.context = undefined;
    if (!context) return;
    context.onstatechange = null;
    setTimeout(() => context.close().catch(() => undefined), 150);
  }

  // ---------------------------------------------------------------- sound that needs a click first

  checkBlocked() {
    const running = this.context?.state === "running";
    const blocked = Boolean(this.output) && !running && !this.held && !DONE.includes(this.state);
    if (blocked === Boolean(this.blocked)) return;
    this.blocked = blocked;
    for (const kind of ["pointerdown", "keydown"]) {
      if (blocked) document.addEventListener(kind, this.onGesture, true);
      else document.removeEventListener(kind, this.onGesture, true);
    }
    if (!blocked) this.output?.keep();
    if (!DONE.includes(this.state)) this.state = blocked ? "blocked" : this.held ? "paused" : "waiting";
    this.announce();
    this.show();
  }

  unblock() { this.wake(); }

  // ---------------------------------------------------------------- what a person does

  pause(tell) {
    if (!this.run || this.held || DONE.includes(this.state)) return;
    this.held = true;
    this.state = "paused";
    this.output?.pause();
    if (tell) this.tell({ t: "pause" });
    this.checkBlocked();
    this.show();
  }

  resume(tell) {
    if (!this.held || DONE.includes(this.state)) return;
    this.held = false;
    this.claim();
    this.wake();
    this.state = "waiting";
    this.output?.resume(); // which may report at once that it plays
    if (tell) this.tell({ t: "resume" });
    setTimeout(() => this.checkBlocked(), BLOCKED_AFTER);
    this.show();
  }

  toggle() {
    if (this.state === "blocked") this.unblock();
    else if (this.held) this.resume(true);
    else this.pause(true);
  }

  stop(tell) {
    if (!this.run || DONE.includes(this.state)) return;
    this.output?.stop();
    this.state = "stopped";
    this.queue = [];
    this.queued = 0;
    if (tell) this.tell({ t: "stop" });
    this.checkBlocked();
    this.rest();
    this.show();
  }

  // The file a person keeps. The sender may want to keep one too.
  save() {
    if (!this.take_?.bytes) return undefined;
    this.tell({ t: "save" });
    return this.take_.file(this.state === "finished" && !this.count.lost);
  }

  // ---------------------------------------------------------------- life

  enter(face) {
    this.faces.add(face);
    if (this.run) this.start();
    else this.tell(this.unopened());
  }

  // A cell that is run again or cleared takes its face away: no sound without its buttons.
  exit(face) {
    this.faces.delete(face);
    setTimeout(() => { if (!this.faces.size) this.leave(); }, 300);
  }

  leave() {
    if (this.run && this.gone !== this.run) this.tell({ t: "bye" });
    this.gone = this.run;
    this.stop(false);
    this.dropContext();
  }

  close() {
    globalThis.removeEventListener?.("pagehide", this.onLeave);
    this.stop(false);
    this.dropContext();
    if (globalThis.rvcSparkSpeaking === this) globalThis.rvcSparkSpeaking = undefined;
  }

  // ---------------------------------------------------------------- what can be seen

  show() { this.faces.forEach((face) => face.update()); }

  // The frame that is heard now.
  position() {
    const last = this.output?.last ?? this.final;
    if (!last) return 0;
    if (last.state !== "playing" || !this.context) return last.position;
    const { currentTime, baseLatency = 0, outputLatency = 0 } = this.context;
    const since = currentTime - last.at - baseLatency - outputLatency;
    return Math.max(0, Math.min(last.position + since * this.run.rate, last.position + last.buffered));
  }

  level() { return this.state === "playing" ? this.track.level(this.position()) : 0; }

  // The last known figures.
  now() {
    return this.output ? this.summary(this.output.last) : { played: 0, buffered: this.queued ?? 0, state: this.state };
  }

  async stats() {
    const heard = this.output ? await this.output.stats() : this.final ?? {};
    const { recv, gaps, lost, repeated } = this.count ?? {};
    const ring = { recv: heard.recv, gaps: heard.gaps, lost: heard.lost };
    return {
      underruns: 0, overrun: 0, silent: 0, played: 0, ...heard, ...{ recv, gaps, lost, repeated, ring }, state: this.state,
      buffered: (heard.buffered ?? 0) + (this.queued ?? 0), queued: this.queued ?? 0, mode: this.output?.mode ?? this.final?.mode ?? "none",
    };
  }
}
