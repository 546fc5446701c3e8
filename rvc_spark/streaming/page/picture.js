// What is seen of the sound: columns of a mel spectrogram and the pitch, kept by time, drawn where the sound is heard.
//
// The tape is a small canvas with one pixel per column and band, written round and round; the picture is that tape,
// laid out with the newest column on the right. So a frame draws the columns that are new and two stretched copies.

const KEPT_SECONDS = 30; // of what was heard; a picture that is made anew begins with it
const SHOWN_SECONDS = 8;
const BLOCKS_PER_SECOND = 50; // of the level
const LEFT = 38; // room for the numbers of the scales, in CSS pixels
const BELOW = 18;
const LABELS_HZ = [100, 250, 500, 1000, 2000, 4000, 8000, 16000];

const TAPE_ROWS = 160;
const CORNER_HZ = 150; // of the picture's scale: a speaker's pitch takes a quarter of the height, not a twentieth

const mel = (hz) => 2595 * Math.log10(1 + hz / 700); // O'Shaughnessy's scale, that of the bands
const height = (hz) => Math.log(1 + hz / CORNER_HZ);
const hzAt = (share, top) => CORNER_HZ * (Math.exp(share * height(top)) - 1); // share of the picture's height

// Columns and levels of a stream, by frame.
class Track {
  constructor({ rate, channels, bands, hop, top_hz: top }) {
    Object.assign(this, { rate, channels, bands: bands || 0, hop: hop || Math.round(rate / 100), top: top || rate / 2 });
    this.parts = []; // {at, frames, peaks, first, cols, mel, f0}
    this.columns = 0; // the number the next column gets
  }

  add(at, samples, cols, buffers, hole) {
    if (hole) this.columns = Math.max(this.columns, Math.round(at / this.hop));
    const part = { at, frames: samples.length / this.channels, peaks: this.peaks(samples), first: this.columns, cols: 0 };
    if (cols && buffers.length > 2) {
      const f0 = bytesOf(buffers[2]).slice().buffer;
      Object.assign(part, { cols, mel: bytesOf(buffers[1]).slice(), f0: new Float32Array(f0) });
    }
    this.columns += part.cols;
    this.parts.push(part);
  }

  peaks(samples) {
    const step = Math.max(1, Math.round(this.rate / BLOCKS_PER_SECOND)) * this.channels;
    const peaks = new Float32Array(Math.ceil(samples.length / step));
    for (let i = 0; i < samples.length; i += 1) {
      const block = Math.floor(i / step);
      const size = Math.abs(samples[i]);
      if (size > peaks[block]) peaks[block] = size;
    }
    return peaks;
  }

  forget(position) {
    const oldest = position - KEPT_SECONDS * this.rate;
    let gone = 0;
    while (gone < this.parts.length && this.parts[gone].at + this.parts[gone].frames < oldest) gone += 1;
    if (gone > 50) this.parts.splice(0, gone);
  }

  // Index of the last part that begins at or before `value` by its field `name`, or -1.
  find(name, value) {
    let low = 0;
    let high = this.parts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.parts[middle][name] <= value) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }

  level(position) {
    const part = this.parts[this.find("at", position)];
    if (!part) return 0;
    return part.peaks[Math.floor(((position - part.at) / this.rate) * BLOCKS_PER_SECOND)] ?? 0;
  }

  // {mel, at, f0} of a column, or undefined where nothing is known of it.
  column(number) {
    const part = this.parts[this.find("first", number)];
    if (!part || number >= part.first + part.cols) return undefined;
    const i = number - part.first;
    return { mel: part.mel, at: i * this.bands, f0: part.f0[i] };
  }
}

class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.tape = document.createElement("canvas");
    this.ink = this.tape.getContext("2d");
  }

  open(track) {
    this.track = track;
    this.count = Math.max(2, Math.ceil((SHOWN_SECONDS * track.rate) / track.hop));
    this.tape.width = this.count;
    this.tape.height = TAPE_ROWS;
    this.image = this.ink.createImageData(1, TAPE_ROWS);
    this.rows = this.bandsOfRows();
    this.pitch = new Float32Array(this.count);
    this.again();
  }

  // Where each row of the tape, from the top, lies between the middles of the bands.
  bandsOfRows() {
    const { bands, top } = this.track;
    return Float32Array.from({ length: TAPE_ROWS }, (_, row) => {
      const hz = hzAt(1 - (row + 0.5) / TAPE_ROWS, top);
      return Math.min(bands - 1, Math.max(0, (mel(hz) / mel(top)) * (bands + 1) - 1));
    });
  }

  // Draw everything anew at the next occasion.
  again() {
    this.drawn = undefined;
    this.shown = undefined;
  }

  // colours: {levels: [[r, g, b] x 256], line, halo, text, grid}
  paint(colours) {
    this.colours = colours;
    this.again();
  }

  fit(width, height) {
    const scale = Math.min(2, globalThis.devicePixelRatio || 1);
    const [w, h] = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    if (this.canvas.width === w && this.canvas.height === h && this.scale === scale) return;
    Object.assign(this.canvas, { width: w, height: h });
    this.scale = scale;
    this.shown = undefined;
  }

  // position: the frame that is heard. Returns whether anything was drawn.
  draw(position) {
    const { track } = this;
    if (!track?.bands || !this.colours || !this.scale || this.shown === position) return false;
    this.shown = position;
    track.forget(position);
    const newest = Math.floor(position / track.hop); // this column ends after what is heard; it is the last one shown
    this.inkColumns(newest);
    const { pen, canvas, scale } = this;
    const [left, width] = [LEFT * scale, canvas.width - LEFT * scale];
    const tall = canvas.height - BELOW * scale;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.save();
    pen.beginPath();
    pen.rect(left, 0, width, tall);
    pen.clip();
    this.layTape(newest, position, left, width, tall);
    this.line(newest, position, left, width, tall);
    pen.restore();
    this.scales(position, left, width, tall);
    return true;
  }

  inkColumns(newest) {
    const { track, count } = this;
    const from = Math.max(this.drawn === undefined || newest < this.drawn ? newest - count + 1 : this.drawn + 1, newest - count + 1);
    for (let number = from; number <= newest; number += 1) {
      const slot = ((number % count) + count) % count;
      const found = number >= 0 ? track.column(number) : undefined;
      this.inkColumn(found);
      this.ink.putImageData(this.image, slot, 0);
      this.pitch[slot] = found?.f0 ?? 0;
    }
    this.drawn = newest;
  }

  inkColumn(found) {
    const { levels } = this.colours;
    const pixels = this.image.data;
    for (let row = 0; row < TAPE_ROWS; row += 1) {
      const band = Math.floor(this.rows[row]);
      const part = this.rows[row] - band;
      let level = 0;
      if (found) {
        level = found.mel[found.at + band];
        if (part > 0) level += Math.round(part * (found.mel[found.at + band + 1] - level));
      }
      const colour = levels[level];
      pixels[4 * row] = colour[0];
      pixels[4 * row + 1] = colour[1];
      pixels[4 * row + 2] = colour[2];
      pixels[4 * row + 3] = 255;
    }
  }

  // Where a column begins: the frame that is heard lies on the right edge.
  x(number, position, left, width) {
    const columns = number - position / this.track.hop;
    return left + width + (columns * width) / (this.count - 1);
  }

  layTape(newest, position, left, width, tall) {
    const { pen, tape, count } = this;
    const oldest = newest - count + 1;
    const split = ((oldest % count) + count) % count; // slot of the oldest column
    const one = width / (count - 1);
    const start = this.x(oldest, position, left, width);
    pen.imageSmoothingEnabled = true;
    pen.drawImage(tape, split, 0, count - split, tape.height, start, 0, (count - split) * one, tall);
    if (split) pen.drawImage(tape, 0, 0, split, tape.height, start + (count - split) * one - 0.5, 0, split * one + 0.5, tall);
  }

  y(hz, pixels) {
    return pixels * (1 - height(hz) / height(this.track.top));
  }

  line(newest, position, left, width, tall) {
    const { pen, pitch, count, scale, colours } = this;
    pen.beginPath();
    let down = false;
    for (let number = Math.max(0, newest - count + 1); number <= newest; number += 1) {
      const hz = pitch[number % count];
      if (hz > 0) {
        const x = this.x(number + 0.5, position, left, width);
        if (down) pen.lineTo(x, this.y(hz, tall));
        else pen.moveTo(x, this.y(hz, tall));
      }
      down = hz > 0;
    }
    pen.lineJoin = pen.lineCap = "round";
    pen.strokeStyle = colours.halo;
    pen.lineWidth = 4 * scale;
    pen.stroke();
    pen.strokeStyle = colours.line;
    pen.lineWidth = 1.75 * scale;
    pen.stroke();
  }

  scales(position, left, width, tall) {
    const { pen, scale, colours, track } = this;
    pen.font = `${10 * scale}px ${colours.font}`;
    pen.fillStyle = colours.text;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    let lastY = Infinity;
    for (const hz of LABELS_HZ) {
      const y = this.y(hz, tall);
      if (hz > track.top || lastY - y < 14 * scale || y < 14 * scale) continue;
      lastY = y;
      pen.fillText(hz < 1000 ? String(hz) : `${hz / 1000}k`, left - 5 * scale, y);
    }
    pen.fillText("Hz", left - 5 * scale, 6 * scale);
    pen.textBaseline = "alphabetic";
    pen.textAlign = "center";
    const now = position / track.rate;
    const step = width / scale < 420 ? 2 : 1;
    const second = width / (((this.count - 1) * track.hop) / track.rate);
    for (let time = Math.max(0, Math.ceil((now - SHOWN_SECONDS) / step) * step); time <= now; time += step) {
      const x = left + width - (now - time) * second;
      if (x < left + 4 * scale || x > left + width - 12 * scale) continue;
      pen.fillRect(x, tall, scale, 3 * scale);
      pen.fillText(`${time} s`, x, tall + 14 * scale);
    }
  }
}
