// A recording from the page's microphone, sent as one message when it is finished: nothing leaves the page before that.
//
// The browser asks the person for permission at the first press. Echo cancellation, noise suppression and automatic gain
// are switched off: they are made for calls, and a voice conversion hears what they do to consonants and breath.

const KINDS = ["audio/webm;codecs=opus", "audio/ogg;codecs=opus", "audio/mp4", "audio/webm"];
const PLAIN = { echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1 };
const REASONS = {
  NotAllowedError: "the microphone was not allowed: allow it beside the page's address, and press again",
  SecurityError: "this page may not use a microphone",
  NotFoundError: "no microphone was found",
  NotReadableError: "the microphone is used by another program",
  AbortError: "the microphone did not start",
};

// Why nothing can be recorded here, or null.
function obstacle() {
  if (!globalThis.isSecureContext) return "a browser records only on pages of this machine or over https";
  if (!navigator.mediaDevices?.getUserMedia) return "this page has no microphone";
  if (typeof MediaRecorder === "undefined") return "this browser cannot record";
  return null;
}

// One recording. limits: {seconds, bytes}. heard(level 0..1, seconds) about 20 times a second. The promise gives
// {data: ArrayBuffer, mime, seconds}, or rejects with words.
export async function record(limits, heard) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: PLAIN });
  const kind = KINDS.find((name) => MediaRecorder.isTypeSupported(name));
  const recorder = new MediaRecorder(stream, kind ? { mimeType: kind, audioBitsPerSecond: 128000 } : {});
  const context = new AudioContext();
  const meter = context.createAnalyser();
  meter.fftSize = 2048;
  context.createMediaStreamSource(stream).connect(meter);
  const wave = new Float32Array(meter.fftSize);
  const pieces = [];
  let bytes = 0;
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  const stop = () => recorder.state !== "inactive" && recorder.stop();
  const watch = setInterval(() => {
    meter.getFloatTimeDomainData(wave);
    heard(wave.reduce((peak, value) => Math.max(peak, Math.abs(value)), 0), seconds());
    if (seconds() >= limits.seconds) stop();
  }, 50);
  const result = new Promise((resolve, reject) => {
    recorder.ondataavailable = ({ data }) => {
      bytes += data.size;
      if (bytes > limits.bytes) stop();
      else pieces.push(data);
    };
    recorder.onerror = ({ error }) => reject(error ?? new Error("recording failed"));
    recorder.onstop = async () => {
      const sound = new Blob(pieces, { type: recorder.mimeType });
      resolve({ data: await sound.arrayBuffer(), mime: recorder.mimeType, seconds: seconds() });
    };
    stream.getAudioTracks()[0].onended = stop; // unplugged, or the permission was taken back
  }).finally(() => {
    clearInterval(watch);
    stream.getTracks().forEach((track) => track.stop());
    context.close();
  });
  recorder.start(1000);
  return { stop, result };
}

function clock(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

function render({ model, el }) {
  el.classList.add("rvc-spark-microphone");
  el.innerHTML =
    '<button class="jupyter-widgets jupyter-button widget-button" type="button"><i class="fa fa-microphone"></i> <span>' +
    '</span></button><meter min="0" max="1" high="0.98" hidden></meter><small role="status"></small>';
  const [button, label, meter, words] = ["button", "span", "meter", "small"].map((name) => el.querySelector(name));
  button.title = model.get("hint");
  let running = null;
  let left = false;
  const rest = (told) => {
    running = null;
    meter.hidden = true;
    label.textContent = "Record";
    words.textContent = told;
  };
  const press = async () => {
    if (running) return running.stop?.();
    const problem = obstacle();
    if (problem) return rest(problem);
    running = {}; // a second press while the browser asks does nothing
    words.textContent = "the browser asks whether it may …";
    try {
      const limits = { seconds: model.get("max_seconds"), bytes: model.get("max_bytes") };
      running = await record(limits, (level, seconds) => {
        meter.value = level;
        label.textContent = `Stop ${clock(seconds)}`;
      });
      if (left) running.stop();
      meter.hidden = false;
      words.textContent = "";
      const { data, mime, seconds } = await running.result;
      if (!left) model.send({ t: "sound", mime, seconds }, undefined, [data]);
      rest("");
    } catch (error) {
      rest(REASONS[error?.name] ?? `the recording failed: ${error?.message ?? error}`);
    }
  };
  button.addEventListener("click", press);
  const problem = obstacle();
  rest(problem ? `No recording: ${problem}.` : "");
  button.hidden = Boolean(problem);
  return () => {
    left = true;
    running?.stop?.();
  };
}

export default { render };
