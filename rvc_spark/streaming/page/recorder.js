// Several takes from the page's microphone, guided by sentences to read: recorded, heard again, deleted, recorded again.
//
// Loaded behind microphone.js, whose `record`, `obstacle`, `clock` and `REASONS` it uses. A take is sent to the kernel
// as one message when it is finished; the page keeps its own copy only to play it back. What the kernel says of the
// takes (the trait `takes`) is what is shown.

const CLIPPED = 0.985; // of full scale: an encoder behind the microphone rounds the tops a little
const FAINT = 0.05; // a peak below this is a microphone far away
const HOLD_SECONDS = 1.5; // how long the meter remembers its highest peak

function element(tag, kind, text) {
  const made = document.createElement(tag);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

function pushButton(icon, words, hint) {
  const made = element("button", "jupyter-widgets jupyter-button widget-button");
  made.type = "button";
  made.title = hint;
  made.setAttribute("aria-label", words || hint);
  const picture = element("i", `fa fa-${icon}`);
  made.append(picture, element("span", "", words ? ` ${words}` : ""));
  return made;
}

// A bar in dB with a line at the highest peak of the last moments, and a warning that stays while a take is clipped.
function levelMeter() {
  const box = element("div", "rvc-level");
  const bar = element("div", "rvc-level-bar");
  const mark = element("div", "rvc-level-peak");
  box.append(bar, mark);
  box.setAttribute("role", "meter");
  box.setAttribute("aria-label", "level of the microphone");
  box.setAttribute("aria-valuemin", "-60");
  box.setAttribute("aria-valuemax", "0");
  let highest = 0;
  let since = 0;
  const share = (level) => Math.min(1, Math.max(0, 1 + Math.log10(Math.max(level, 1e-6)) / 3)); // -60..0 dB
  return {
    box,
    show(level, seconds) {
      if (level >= highest || seconds - since > HOLD_SECONDS || seconds < since) [highest, since] = [level, seconds];
      bar.style.width = `${100 * share(level)}%`;
      mark.style.left = `${100 * share(highest)}%`;
      box.classList.toggle("rvc-hot", level >= CLIPPED);
      box.setAttribute("aria-valuenow", Math.round(20 * Math.log10(Math.max(level, 1e-3))));
    },
    rest() {
      [highest, since] = [0, 0];
      bar.style.width = mark.style.left = "0";
      box.classList.remove("rvc-hot");
    },
  };
}

// What is wrong with the level of a take, in words, or nothing.
function verdict(peak) {
  if (peak >= CLIPPED) return "too loud: it is clipped; move back or turn the microphone down, and record it again";
  if (peak < FAINT) return "very quiet: come closer or turn the microphone up, and record it again";
  return "";
}

function renderTakes({ model, el }) {
  el.classList.add("rvc-spark-recorder");
  const sounds = new Map(); // take -> address of the page's own copy
  const prompt = element("p", "rvc-prompt");
  const place = element("small", "rvc-prompt-place");
  const back = pushButton("chevron-left", "", "the sentence before");
  const forth = pushButton("chevron-right", "", "the next sentence");
  const press = pushButton("microphone", "Record", model.get("hint"));
  press.classList.add("mod-primary", "rvc-record");
  const meter = levelMeter();
  const words = element("small", "rvc-words");
  words.setAttribute("role", "status");
  const list = element("ol", "rvc-takes");
  const steps = element("div", "rvc-steps");
  steps.append(back, forth, place);
  const controls = element("div", "rvc-controls");
  controls.append(press, meter.box);
  el.append(prompt, steps, controls, words, list);

  let running = null;
  let left = false;
  const label = (text) => (press.querySelector("span").textContent = ` ${text}`);
  const prompts = () => model.get("prompts");
  const current = () => Math.min(model.get("current"), Math.max(0, prompts().length - 1));

  function showPrompt() {
    const all = prompts();
    prompt.textContent = all.length ? all[current()] : "Say a few sentences in your usual voice.";
    const done = model.get("takes").some((take) => take.prompt === current());
    place.textContent = all.length ? `sentence ${current() + 1} of ${all.length}${done ? ", recorded" : ""}` : "";
    back.disabled = running !== null || current() === 0;
    forth.disabled = running !== null || current() >= all.length - 1;
    steps.hidden = all.length < 2;
  }

  function go(number) {
    model.set("current", number);
    model.save_changes();
    showPrompt();
  }

  function showTakes() {
    list.replaceChildren();
    for (const take of model.get("takes")) {
      const row = element("li", take.note ? "rvc-take rvc-odd" : "rvc-take");
      row.append(element("span", "rvc-take-name", `${take.seconds.toFixed(1)} s ${take.text}`));
      if (sounds.has(take.id)) {
        const player = element("audio");
        player.controls = true;
        player.preload = "metadata";
        player.src = sounds.get(take.id);
        row.append(player);
      }
      const again = pushButton("repeat", "", "record this sentence again in place of this take");
      again.onclick = () => running || (go(Math.max(0, take.prompt)), start(take.id));
      const drop = pushButton("trash", "", "delete this take");
      drop.onclick = () => {
        if (running) return;
        URL.revokeObjectURL(sounds.get(take.id));
        sounds.delete(take.id);
        model.send({ t: "delete", id: take.id });
      };
      row.append(again, drop);
      if (take.note) row.append(element("small", "rvc-take-note", `\u26a0 ${take.note}`));
      list.append(row);
    }
    showPrompt();
  }

  function rest(told) {
    running = null;
    meter.rest();
    label("Record");
    press.classList.remove("rvc-live");
    words.textContent = told;
    showPrompt();
  }

  // instead: the take that the new one replaces, if any.
  async function start(instead = null) {
    const problem = obstacle();
    if (problem) return rest(problem);
    running = {}; // a second press while the browser asks does nothing
    const spoken = current();
    let peak = 0;
    words.textContent = "the browser asks whether it may …";
    try {
      const limits = { seconds: model.get("max_seconds"), bytes: model.get("max_bytes") };
      running = await record(limits, (level, seconds) => {
        peak = Math.max(peak, level);
        meter.show(level, seconds);
        label(`Stop ${clock(seconds)}`);
        if (peak >= CLIPPED) words.textContent = "too loud: move back or turn the microphone down";
      });
      if (left) running.stop();
      press.classList.add("rvc-live");
      words.textContent = "recording: read the sentence aloud";
      showPrompt();
      const { data, mime, seconds } = await running.result;
      if (left) return;
      const id = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
      if (instead !== null) URL.revokeObjectURL(sounds.get(instead));
      sounds.delete(instead);
      sounds.set(id, URL.createObjectURL(new Blob([data], { type: mime })));
      model.send({ t: "take", id, instead, mime, seconds, peak, prompt: prompts().length ? spoken : -1 }, undefined, [data]);
      rest(verdict(peak));
      if (!verdict(peak) && spoken < prompts().length - 1) go(spoken + 1);
    } catch (error) {
      rest(REASONS[error?.name] ?? `the recording failed: ${error?.message ?? error}`);
    }
  }

  press.addEventListener("click", () => (running ? running.stop?.() : start()));
  back.addEventListener("click", () => go(current() - 1));
  forth.addEventListener("click", () => go(current() + 1));
  const showSaid = () => running || (words.textContent = model.get("said"));
  const watched = { "change:said": showSaid, "change:takes": showTakes, "change:prompts": showPrompt, "change:current": showPrompt };
  for (const [event, react] of Object.entries(watched)) model.on(event, react);
  const problem = obstacle();
  rest(problem ? `No recording: ${problem}.` : "");
  press.hidden = meter.box.hidden = Boolean(problem);
  showTakes();
  return () => {
    left = true;
    running?.stop?.();
    for (const [event, react] of Object.entries(watched)) model.off(event, react);
    sounds.forEach((address) => URL.revokeObjectURL(address));
  };
}

export default { render: renderTakes };
