"""A voice enrolled as a person does it: read sentences into a (false) microphone, look, agree, press the button.

The false microphone plays speech that is shipped with the project, from its beginning whenever it is opened. How long
things take is not judged.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_place import Console, Notebook, browser, jupyter, missing, picture, plain_server, until

from rvc_spark.audio import Audio, read_audio, write_audio
from rvc_spark.rvc_config import RVCConfig
from rvc_spark.widgets.recorder import recorder_module

pytestmark = pytest.mark.skipif(bool(missing("jupyterlab")), reason=missing("jupyterlab"))

ALLOWED = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
           "--autoplay-policy=no-user-gesture-required")  # fmt: skip
SECONDS = 300.0  # for cold networks on a busy machine
CODE = (
    "from rvc_spark.widgets import EnrolPanel\n"
    "panel = EnrolPanel(min_sample_duration=2.0, min_total_duration=4.0)\n"
    "panel.recorder.max_seconds = 4.0\n"
    "panel"
)
# A widget's model as far as the recorder looks at it: what the kernel would answer is put in by the test.
MODEL = """
import recorder from "./recorder.js";
const values = { hint: "a hint", max_seconds: 0.7, max_bytes: 4e6, prompts: ["First, this.", "Then that."], current: 0,
                 takes: [], said: "" };
const heard = {};
globalThis.sent = [];
globalThis.model = {
  get: (name) => values[name],
  set: (name, value) => { values[name] = value; heard[`change:${name}`]?.(); },
  save_changes: () => null,
  send: (content, _callbacks, buffers) => sent.push([content, buffers?.[0]?.byteLength ?? 0]),
  on: (name, react) => (heard[name] = react),
  off: (name) => delete heard[name],
};
globalThis.leave = recorder.render({ model, el: document.body });
"""


@pytest.fixture(scope="module")
def alone() -> Iterator[str]:
    """A page with nothing but the recorder."""
    files = {
        "/": ("text/html", b'<body></body><script type="module" src="./page.js"></script>'),
        "/page.js": ("text/javascript", MODEL.encode()),
        "/recorder.js": ("text/javascript", recorder_module().encode()),
    }
    with plain_server(files) as address:
        yield address


def test_takes_are_sent_shown_repeated_and_deleted(alone: str) -> None:
    with browser(*ALLOWED) as chromium:
        page = chromium.new_page()
        console = Console(["404"]).follow(page)
        page.goto(alone)
        until(page, "() => document.querySelector('.rvc-record') !== null")
        assert page.inner_text(".rvc-prompt") == "First, this." and "1 of 2" in page.inner_text(".rvc-prompt-place")
        page.click(".rvc-record")
        until(page, "() => document.querySelector('.rvc-level').getAttribute('aria-valuenow') > -55")
        until(page, "() => sent.length === 1")
        (take, size) = page.evaluate("() => sent[0]")
        assert take["t"] == "take" and take["prompt"] == 0 and take["instead"] is None and size > 500
        assert take["seconds"] >= 0.7 and 0 < take["peak"] <= 1.1 and "audio/" in take["mime"]
        until(page, "() => document.querySelector('.rvc-record').innerText.includes('Record')")
        shown = {"id": take["id"], "seconds": 0.7, "text": "First, this.", "note": "it is clipped", "prompt": 0}
        page.evaluate("(take) => model.set('takes', [take])", shown)
        assert page.locator(".rvc-take").count() == 1 and "it is clipped" in page.inner_text(".rvc-take-note")
        until(page, "() => document.querySelector('.rvc-take audio').readyState >= 1")  # it can be heard again
        page.click(".rvc-take button[title*='again']")
        until(page, "() => sent.length === 2")
        assert page.evaluate("() => [sent[1][0].instead, sent[1][0].prompt]") == [take["id"], 0]
        until(page, "() => document.querySelector('.rvc-record').innerText.includes('Record')")
        page.click(".rvc-take button[title*='delete']")
        assert page.evaluate("() => [sent[2][0].t, sent[2][0].id]") == ["delete", take["id"]]
        page.evaluate("() => model.set('said', 'this take cannot be used')")
        assert page.inner_text(".rvc-words") == "this take cannot be used"
        page.evaluate("() => model.set('current', 0)")
        page.click(".rvc-steps button[title*='next']")
        assert page.inner_text(".rvc-prompt") == "Then that."
        page.click(".rvc-record")
        until(page, "() => document.querySelector('.rvc-record').innerText.includes('Stop')")
        page.evaluate("() => leave()")  # the widget is closed while it records: nothing is sent any more
        page.wait_for_timeout(900)
        assert page.evaluate("() => sent.length") == 3 and console.errors == []


def test_whoever_may_not_record_is_told_so(alone: str) -> None:
    with browser(ALLOWED[0]) as chromium:  # nobody is there to allow it
        page = chromium.new_page()
        page.goto(alone)
        until(page, "() => document.querySelector('.rvc-record') !== null")
        page.click(".rvc-record")
        until(page, "() => document.querySelector('.rvc-words').innerText.includes('allow')")
        assert page.evaluate("() => sent.length") == 0
        page.add_init_script("delete Navigator.prototype.mediaDevices")
        page.goto(alone)
        until(page, "() => document.querySelector('.rvc-words')?.innerText.includes('no microphone')")
        assert not page.is_visible(".rvc-record")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Notebook, Console]]:
    """An open notebook whose first cell shows the panel, and a microphone that hears what is in `heard.wav`."""
    nbformat = pytest.importorskip("nbformat")
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, folder / "enrol.ipynb")
    with contextlib.ExitStack() as stack:
        surroundings = stack.enter_context(pytest.MonkeyPatch.context())
        for name in ("temp", "profiles"):
            surroundings.setenv(f"RVC_SPARK_{name.upper()}", str(folder / name))
        surroundings.setenv("TRITON_SERVER_PORT", "1")
        address = stack.enter_context(jupyter("lab", folder))
        chromium = stack.enter_context(browser(*ALLOWED, f"--use-file-for-fake-audio-capture={folder / 'heard.wav'}"))
        page = chromium.new_page(viewport={"width": 1360, "height": 1000})
        page.set_default_timeout(1000 * SECONDS)
        console = Console(["404"]).follow(page)
        page.goto(f"{address}/lab/tree/enrol.ipynb?reset")
        here = Notebook(page).wait()
        page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
        here.run(0)
        page.wait_for_selector(".rvc-enrol .rvc-record")
        yield here, console


def speak_into_the_microphone(folder: Path, number: int) -> None:
    """What is heard from now on: one of the demo voice's examples, over and over."""
    clip = sorted((RVCConfig().demo_dir / "examples").glob("*slt*.flac"))[number]
    speech = read_audio(clip, rate=48_000, mono=True).samples
    write_audio(folder / "heard.wav", Audio(0.7 * speech / np.abs(speech).max(), 48_000))


def press(page: Any, words: str) -> None:
    page.locator(".rvc-enrol button").filter(has_text=re.compile(rf"^\s*{words}")).first.click()


def ask(notebook: Notebook, expression: str) -> Any:
    return ast.literal_eval(notebook.ask(f"print(repr({expression}))"))


def fill(page: Any, hint: str, words: str) -> None:
    box = page.locator(f".rvc-enrol input[placeholder='{hint}']")
    box.fill(words)
    box.press("Enter")


def test_read_look_agree_and_the_voice_is_enrolled(lab: tuple[Notebook, Console]) -> None:
    notebook, console = lab
    page = notebook.page
    folder = Path(ask(notebook, "__import__('os').getcwd()"))
    for count in (1, 2, 3):
        speak_into_the_microphone(folder, count - 1)
        press(page, "Record")
        until(page, f"() => document.querySelectorAll('.rvc-take').length === {count}", SECONDS)
        assert f"{count} recording" in page.locator(".rvc-enrol").inner_text()
    assert "sentence 4 of" in page.inner_text(".rvc-prompt-place")
    page.locator(".rvc-take button[title*='delete']").first.click()
    until(page, "() => document.querySelectorAll('.rvc-take').length === 2")
    press(page, "Check")
    until(page, "() => /All together/.test(document.querySelector('.rvc-enrol').innerText)", SECONDS)
    fill(page, "Anna", "Anna of the browser")
    fill(page, "Anna Example", "Anna Example")
    press(page, "Create profile")
    until(page, "() => /consent is not given/.test(document.querySelector('.rvc-enrol').innerText)", SECONDS)
    assert ask(notebook, "panel.profile") is None
    page.locator(".rvc-enrol label").filter(has_text="I agree").locator("input").check()
    picture(page, "enrol")
    press(page, "Create profile")
    until(page, "() => /is enrolled\\. Speak/.test(document.querySelector('.rvc-enrol').innerText)", SECONDS)
    told = ask(notebook, "(panel.profile.name, len(panel.profile.samples), panel.profile.record.consent.who, "
                         "[s.transcript for s in panel.profile.samples] == panel.recorder.prompts[1:3], "
                         "round(panel.profile.pitch.median))")  # fmt: skip
    assert told[:4] == ("Anna of the browser", 2, "Anna Example", True) and 140 < told[4] < 210
    assert ask(notebook, "__import__('os').listdir(panel.recorder._place.name)") == []
    assert page.locator(".rvc-take").count() == 0
    picture(page, "enrolled")
    assert console.errors == []


def test_nothing_of_the_voice_is_in_the_notebook(lab: tuple[Notebook, Console]) -> None:
    notebook, _ = lab
    notebook.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    saved = Path(ask(notebook, "__import__('os').getcwd()")) / "enrol.ipynb"
    assert re.findall(r"data:audio/webm[^\"]*base64", saved.read_text("utf-8")) == []
