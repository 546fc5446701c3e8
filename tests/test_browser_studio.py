"""The studio as a person meets it: a real JupyterLab in headless Chromium, a false microphone, and a picture of it all.

How long things take is not judged; the bounds only mean "does not hang".
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_place import Console, Notebook, browser, jupyter, missing, picture, plain_server, until

pytestmark = pytest.mark.skipif(bool(missing("jupyterlab")), reason=missing("jupyterlab"))

PAGE = Path(__file__).resolve().parent.parent / "rvc_spark" / "streaming" / "page"
FALSE_MICROPHONE = ("--use-fake-device-for-media-stream", "--autoplay-policy=no-user-gesture-required")
ALLOWED = "--use-fake-ui-for-media-stream"
CODE = "from rvc_spark.widgets import Studio\nstudio = Studio()\nstudio"
SECONDS = 300.0  # for cold networks on a busy machine
STATS = "await [...rvcSparkPlayers.values()][0].stats()"
# A widget's model as far as the microphone looks at it.
MODEL = """
import microphone from "./microphone.js";
const values = { hint: "a hint", max_seconds: 0.6, max_bytes: 8e6 };
globalThis.sent = [];
const model = { get: (name) => values[name], send: (...message) => sent.push(message) };
globalThis.leave = microphone.render({ model, el: document.body });
"""


# ----------------------------------------------------------------------------------------------- the microphone alone


@pytest.fixture(scope="module")
def alone() -> Iterator[str]:
    """A page with nothing but the microphone."""
    files = {
        "/": ("text/html", b'<body></body><script type="module" src="./page.js"></script>'),
        "/page.js": ("text/javascript", MODEL.encode()),
        "/microphone.js": ("text/javascript", (PAGE / "microphone.js").read_bytes()),
    }
    with plain_server(files) as address:
        yield address


def opened(page: Any, address: str) -> None:
    page.goto(address)
    until(page, "() => document.querySelector('button') !== null")


def test_a_recording_ends_at_its_limit_and_arrives_whole(alone: str) -> None:
    with browser(*FALSE_MICROPHONE, ALLOWED) as chromium:
        page = chromium.new_page()
        console = Console(["404"]).follow(page)
        opened(page, alone)
        page.click("button")
        until(page, "() => sent.length")
        told = page.evaluate("() => [sent[0][0], sent[0][2][0].byteLength, sent.length]")
        assert told[0]["t"] == "sound" and "audio/" in told[0]["mime"] and told[0]["seconds"] >= 0.6
        assert told[1] > 500 and told[2] == 1
        assert page.inner_text("button").strip() == "Record" and page.inner_text("small") == ""
        page.click("button")
        until(page, "() => document.querySelector('button').innerText.includes('Stop')")
        page.evaluate("() => leave()")  # the widget is closed while it records: nothing is sent any more
        until(page, "() => document.querySelector('button').innerText.includes('Record')")
        assert page.evaluate("() => sent.length") == 1 and console.errors == []


def test_whoever_may_not_record_is_told_so(alone: str) -> None:
    with browser(*FALSE_MICROPHONE) as chromium:  # nobody is there to allow it
        page = chromium.new_page()
        opened(page, alone)
        page.click("button")
        until(page, "() => document.querySelector('small').innerText.includes('allow')")
        assert page.inner_text("button").strip() == "Record"
        page.add_init_script("delete Navigator.prototype.mediaDevices")
        opened(page, alone)
        assert "no microphone" in page.inner_text("small") and not page.is_visible("button")
        insecure = chromium.new_page()
        insecure.add_init_script("Object.defineProperty(globalThis, 'isSecureContext', { value: false })")
        opened(insecure, alone)
        assert "https" in insecure.inner_text("small") and not insecure.is_visible("button")


# --------------------------------------------------------------------------------------------------- in JupyterLab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Notebook, Console]]:
    """An open notebook whose first cell shows the studio."""
    nbformat = pytest.importorskip("nbformat")
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, folder / "studio.ipynb")
    with contextlib.ExitStack() as stack:
        surroundings = stack.enter_context(pytest.MonkeyPatch.context())
        surroundings.setenv("RVC_SPARK_TEMP", "TEMP")  # in that folder; a picture for everybody names nobody's folders
        address = stack.enter_context(jupyter("lab", folder))
        chromium = stack.enter_context(browser(*FALSE_MICROPHONE, ALLOWED))
        page = chromium.new_page(viewport={"width": 1360, "height": 900})
        page.set_default_timeout(1000 * SECONDS)
        console = Console(["404"]).follow(page)
        page.goto(f"{address}/lab/tree/studio.ipynb?reset")
        here = Notebook(page).wait()
        page.evaluate("() => window.jupyterapp.commands.execute('application:toggle-left-area')")
        here.run(0)
        page.wait_for_selector(".rvc-studio")
        yield here, console


def press(page: Any, words: str) -> None:
    page.locator(".rvc-studio button").filter(has_text=re.compile(rf"^\s*{words}")).first.click()


def state(kind: str) -> str:
    return f"() => document.querySelector('.rvc-status').classList.contains('rvc-{kind}')"


def ask(notebook: Notebook, expression: str) -> Any:
    return ast.literal_eval(notebook.ask(f"print(repr({expression}))"))


def test_one_press_and_another_voice_is_heard(lab: tuple[Notebook, Console]) -> None:
    notebook, console = lab
    page = notebook.page
    press(page, "Speak")
    until(page, state("working"))
    until(page, state("done"), SECONDS)
    until(page, "() => document.querySelector('.rvc-picture img')?.naturalWidth > 500")
    frames = ask(notebook, "studio.takes[-1].audio.frames")
    until(page, f"async () => ({STATS}).played === {frames}", SECONDS)
    stats = page.evaluate(f"async () => {STATS}")
    assert stats["lost"] == 0 and stats["gaps"] == 0
    assert ask(notebook, "(studio.takes[-1].state, studio.takes[-1].has_source)") == ("done", True)
    press(page, "Speak")  # once more, as a person at work would see it: the networks are loaded
    until(page, "() => document.querySelector('.rvc-studio').innerText.includes('take 2')", SECONDS)
    until(page, state("done"), SECONDS)
    until(page, f"async () => ({STATS}).played === {frames}", SECONDS)
    press(page, "B: result")
    until(page, "() => document.querySelector('.rvc-studio').innerText.includes('LUFS')", SECONDS)
    page.wait_for_timeout(2500)  # so that there is something to be seen
    picture(page, "studio")
    assert console.errors == []


def test_what_is_changed_on_the_page_is_read_back(lab: tuple[Notebook, Console]) -> None:
    notebook, _ = lab
    page = notebook.page
    page.locator(".rvc-studio textarea").fill("Two sentences. Both are short.")
    until(page, "() => document.querySelector('.rvc-studio').innerText.includes('2 sentences')")
    page.locator(".rvc-studio input[type=checkbox]").uncheck()
    page.locator(".rvc-studio select").filter(has_text="harvest").select_option("pm")
    chosen = {"text": "Two sentences. Both are short.", "auto_key": "off", "f0_method": "pm"}
    end = 400
    while end and not chosen.items() <= ask(notebook, "studio.settings()").items():
        end -= 1
        page.wait_for_timeout(50)
    assert chosen.items() <= ask(notebook, "studio.settings()").items()


def test_a_recording_from_the_microphone_is_converted(lab: tuple[Notebook, Console]) -> None:
    notebook, console = lab
    page = notebook.page
    press(page, "Record")
    until(page, "() => /Stop 0:01/.test(document.querySelector('.rvc-spark-microphone').innerText)")
    press(page, "Stop 0:")
    until(page, "() => document.querySelector('.rvc-studio').innerText.includes('recording_')")
    press(page, "Convert")
    until(page, state("working"))
    until(page, state("done"), SECONDS)
    kind, seconds = ask(notebook, "(studio.takes[-1].kind, studio.takes[-1].seconds)")
    assert kind == "conversion" and seconds > 0.8
    press(page, "A: source")
    until(page, "() => document.querySelector('.rvc-studio').innerText.includes('LUFS')")
    assert console.errors == []


def test_stop_is_a_stop_and_refusals_are_words(lab: tuple[Notebook, Console]) -> None:
    notebook, console = lab
    page = notebook.page
    page.locator(".rvc-studio textarea").fill("A long story, told sentence by sentence. " * 30)
    press(page, "Speak")
    until(page, "() => /working … [\\d.]+ s of sound/.test(document.querySelector('.rvc-status').innerText)", SECONDS)
    press(page, "Stop")
    until(page, "() => document.querySelector('.rvc-status').innerText.includes('stopped after')", SECONDS)
    until(page, "() => [...rvcSparkPlayers.values()].every((player) => player.state !== 'playing')")
    page.locator(".rvc-studio textarea").fill("")
    press(page, "Speak")
    until(page, state("bad"))
    assert "the text is empty" in page.locator(".rvc-studio").inner_text()
    threads = ask(notebook, "[thread.name for thread in __import__('threading').enumerate()]")
    assert not [name for name in threads if name.startswith(("studio", "rvc-spark-pull", "rvc-spark-send"))]
    assert console.errors == []
