// What a person sees and presses: buttons, level, picture, numbers. One deck may have several faces.

const ICONS = {
  play: "M5 3.2v9.6a.6.6 0 0 0 .92.5l7.3-4.8a.6.6 0 0 0 0-1L5.92 2.7A.6.6 0 0 0 5 3.2z",
  pause: "M4 3h3v10H4zM9 3h3v10H9z",
  stop: "M3.5 3.5h9v9h-9z",
  save: "M7.2 2h1.6v6l2.3-2.3 1.1 1.1L8 11 3.8 6.8l1.1-1.1L7.2 8zM3 12.4h10V14H3z",
};

const STATES = {
  idle: "nothing to play yet",
  waiting: "waiting for sound",
  playing: "playing",
  paused: "paused",
  blocked: "press to listen",
  stopped: "stopped",
  finished: "finished",
};

const PROGRESS = ["making", "all is made"]; // what the sender says while all is well

const LEVEL_FLOOR = -60; // dB at the left end of the meter
const FRAME_MS = 40; // 25 pictures a second are smooth enough

const icon = (name) => `<svg viewBox="0 0 16 16" width="16" height="16" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;

const FACE = `
<div class="rvc-spark-top">
  <button type="button" class="rvc-spark-play"></button>
  <button type="button" class="rvc-spark-stop" aria-label="Stop" title="Stop: the sound ends, and so does the work behind it">${icon("stop")}</button>
  <button type="button" class="rvc-spark-save" aria-label="Save" title="Save what has come so far as a WAV file">${icon("save")}</button>
  <span class="rvc-spark-title"></span>
  <span class="rvc-spark-state" role="status" aria-live="polite"></span>
</div>
<div class="rvc-spark-meter" role="meter" aria-label="Level in dB" aria-valuemin="${LEVEL_FLOOR}" aria-valuemax="0"
  aria-valuenow="${LEVEL_FLOOR}" title="Level, -60 to 0 dB"><i></i></div>
<div class="rvc-spark-stage">
  <canvas role="img" aria-label="Spectrogram of what is heard, with the line of its pitch"
    title="Spectrogram of what is heard; the line is its pitch"></canvas>
  <button type="button" class="rvc-spark-listen">${icon("play")}<span>Press to listen</span></button>
</div>
<div class="rvc-spark-bar" role="progressbar" aria-label="Heard" aria-valuemin="0" aria-valuemax="100"
  title="Heard so far, and made so far"><i class="rvc-spark-made"></i><i class="rvc-spark-heard"></i></div>
<div class="rvc-spark-numbers">
  <span class="rvc-spark-time" title="Heard, of what has come so far, of the whole where its length is known"></span>
  <span class="rvc-spark-counts">
    <span class="rvc-spark-ahead" title="Seconds of sound that are here and not yet heard"></span>
    <span class="rvc-spark-dry" title="Underruns: how often sound ran out while playing"></span>
    <span class="rvc-spark-lost" title="Messages that never came from the kernel"></span>
  </span>
</div>
<ul class="rvc-spark-gaps" aria-label="What is missing"></ul>`;

class Face {
  constructor(deck, element) {
    this.deck = deck;
    this.root = document.createElement("div");
    this.root.className = "rvc-spark-player";
    this.root.setAttribute("role", "group");
    this.root.dataset.lmSuppressShortcuts = "true"; // a notebook's single-key commands are not meant for buttons
    this.root.innerHTML = FACE;
    const part = (name) => this.root.querySelector(`.rvc-spark-${name}`);
    this.parts = Object.fromEntries(
      ["play", "stop", "save", "title", "state", "meter", "stage", "listen", "bar", "made", "heard", "time", "ahead", "dry", "lost", "gaps"]
        .map((name) => [name, part(name)]),
    );
    this.needle = this.parts.meter.firstElementChild;
    this.canvas = this.root.querySelector("canvas");
    this.picture = new Picture(this.canvas);
    this.frame = (time) => this.animate(time);
    this.listen();
    element.appendChild(this.root);
    this.watch();
    if (deck.run) this.open();
    deck.enter(this);
    this.update();
  }

  listen() {
    const { play, listen, stop, save } = this.parts;
    play.addEventListener("click", () => this.deck.toggle());
    listen.addEventListener("click", () => this.deck.unblock());
    stop.addEventListener("click", () => this.deck.stop(true));
    save.addEventListener("click", () => this.save());
    this.root.addEventListener("keydown", (event) => {
      if (event.key === " " || event.key === "Enter") event.stopPropagation(); // pressing a button is not running a cell
    });
  }

  watch() {
    this.seen = true;
    this.resized = new ResizeObserver(() => this.fit());
    this.resized.observe(this.canvas);
    this.crossed = new IntersectionObserver(([entry]) => {
      this.seen = entry.isIntersecting;
      this.wake();
    });
    this.crossed.observe(this.root);
  }

  remove() {
    this.removed = true;
    this.resized.disconnect();
    this.crossed.disconnect();
    clearTimeout(this.asked);
    this.root.remove();
    this.deck.exit(this);
  }

  open() {
    const { title } = this.deck.run;
    this.parts.title.textContent = title;
    this.parts.title.title = title;
    this.root.setAttribute("aria-label", title ? `Player: ${title}` : "Player");
    this.picture.open(this.deck.track);
    this.parts.stage.hidden = !this.deck.track.bands;
    this.fit();
  }

  fit() {
    const { clientWidth, clientHeight } = this.canvas;
    this.picture.fit(clientWidth, clientHeight);
    this.dress();
    this.wake();
  }

  // ---------------------------------------------------------------- moving parts

  wake() {
    if (this.asked || this.removed || !this.seen) return;
    // a page that asks for every frame is composed sixty times a second, whether anything was drawn or not
    const rest = Math.max(0, FRAME_MS - (performance.now() - (this.drawnAt ?? -Infinity)));
    this.asked = setTimeout(() => requestAnimationFrame(this.frame), rest);
  }

  animate(time) {
    this.asked = undefined;
    if (this.removed) return;
    this.drawnAt = time;
    this.meter();
    this.picture.draw(this.deck.position());
    if (this.deck.state === "playing" || this.level > 0.001) this.wake(); // else nothing moves: no frames
  }

  meter() {
    const peak = this.deck.level();
    this.level = Math.max(peak, (this.level ?? 0) * 0.7);
    const decibels = Math.max(LEVEL_FLOOR, 20 * Math.log10(this.level || 1e-9));
    this.needle.style.transform = `scaleX(${(1 - decibels / LEVEL_FLOOR).toFixed(3)})`;
    this.decibels = decibels;
  }

  // The picture's colours follow the page's theme, which may change at any time.
  dress() {
    const style = getComputedStyle(this.root);
    const key = `${style.backgroundColor} ${style.color}`;
    if (key === this.dressed) return;
    this.dressed = key;
    this.root.dataset.theme = isLight(style.color) ? "dark" : "light"; // light words stand on dark paper
    this.picture.paint(coloursOf(style));
    this.wake();
  }

  // ---------------------------------------------------------------- words and numbers

  update() {
    const { deck, parts } = this;
    const { state } = deck;
    const done = state === "stopped" || state === "finished" || state === "idle";
    this.press(parts.play, done || state === "playing" || state === "waiting" ? "Pause" : "Play", done);
    parts.stop.disabled = done;
    parts.save.disabled = !deck.take_?.bytes;
    parts.listen.hidden = state !== "blocked";
    this.root.dataset.state = state;
    const status = deck.words?.status;
    const known = !status || (done && PROGRESS.includes(status)); // an end that was an error is told
    this.say(parts.state, known ? STATES[state] : `${STATES[state]} · ${status}`);
    this.numbers();
    this.dress();
    this.wake();
  }

  press(button, label, disabled) {
    button.disabled = disabled;
    if (button.dataset.label === label) return;
    button.dataset.label = label;
    button.innerHTML = icon(label.toLowerCase());
    button.setAttribute("aria-label", label);
    button.title = label === "Play" ? "Play from where it stopped" : "Pause: nothing is lost, playing goes on from here";
  }

  say(element, words) {
    if (element.textContent !== words) element.textContent = words;
  }

  numbers() {
    const { deck, parts } = this;
    if (!deck.run) return;
    const { rate } = deck.run;
    const last = deck.output?.last ?? deck.final ?? { position: 0, underruns: 0, buffered: 0 };
    const [heard, come] = [last.position / rate, deck.frames / rate];
    const { made, total } = deck.words?.progress ?? {};
    const known = Math.max(come, made ?? 0);
    const whole = total ?? (deck.over ? come : undefined);
    const more = whole === undefined ? " made" : whole > known + 0.05 ? ` of ${clock(whole)}` : "";
    this.say(parts.time, `${clock(heard)} / ${clock(known)}${more}`);
    const ahead = deck.state === "stopped" ? 0 : (last.buffered + deck.queued) / rate;
    this.say(parts.ahead, `buffered ${ahead.toFixed(ahead < 10 ? 2 : 0)} s`);
    this.say(parts.dry, `underruns ${last.underruns}`);
    parts.dry.classList.toggle("rvc-spark-warn", last.underruns > 0);
    const { lost } = deck.count;
    this.say(parts.lost, `lost ${lost}`);
    parts.lost.classList.toggle("rvc-spark-warn", lost > 0);
    const scale = whole ?? known;
    const share = (seconds) => (scale ? Math.min(1, seconds / scale) : 0);
    parts.heard.style.transform = `scaleX(${share(heard)})`;
    parts.made.style.transform = `scaleX(${share(known)})`;
    parts.bar.setAttribute("aria-valuenow", Math.round(100 * share(heard)));
    parts.meter.setAttribute("aria-valuenow", Math.round(this.decibels ?? LEVEL_FLOOR));
    this.gaps(deck.words?.gaps ?? []);
  }

  gaps(lines) {
    const { gaps } = this.parts;
    if (gaps.childElementCount === lines.length) return;
    gaps.replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
  }

  save() {
    const file = this.deck.save();
    if (!file) return;
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(file), download: file.name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const tenth = Math.floor(10 * (seconds - whole));
  const hours = Math.floor(whole / 3600);
  const minutes = String(Math.floor(whole / 60) % 60).padStart(hours ? 2 : 1, "0");
  return `${hours ? `${hours}:` : ""}${minutes}:${String(whole % 60).padStart(2, "0")}.${tenth}`;
}

// Colours of the picture: silence is the page's own background, loudness goes through the theme's stops.
function coloursOf(style) {
  const stops = [0, 1, 2, 3, 4].map((i) => rgb(style.getPropertyValue(`--rvc-spark-level-${i}`)));
  const levels = Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    return [0, 1, 2].map((c) => Math.round(stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c])));
  });
  const read = (name) => style.getPropertyValue(`--rvc-spark-${name}`).trim();
  return { levels, line: read("line"), halo: read("halo"), text: style.color, font: style.fontFamily };
}

// color: "rgb(r, g, b)" as browsers compute it
function isLight(color) {
  const [red, green, blue] = (color.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140;
}

function rgb(hex) {
  const value = parseInt(hex.trim().slice(1), 16) || 0;
  return [value >> 16, (value >> 8) & 255, value & 255];
}
