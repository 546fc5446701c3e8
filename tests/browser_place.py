"""A place for tests with a real browser: headless Chromium, and a Jupyter server or a plain page to point it at.

Everything binds to 127.0.0.1 and keeps its settings under a test's own folder; the browser cannot reach anything else.
What is started runs in its own process group and is ended with it.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "TEMP" / "browser"
START_SECONDS = 90.0  # a server on a busy machine; only means "does not hang"
FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--no-first-run",
    "--disable-client-side-phishing-detection",
    "--disable-domain-reliability",
    "--no-pings",
    "--metrics-recording-only",
    "--disable-features=OptimizationHints,MediaRouter,Translate,AutofillServerCommunication",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
    "--disable-gpu",
    "--disable-dev-shm-usage",
)
MAY_SOUND = "--autoplay-policy=no-user-gesture-required"
NEEDS_CLICK = "--autoplay-policy=document-user-activation-required"


def chromium() -> str | None:
    """The installed browser, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


def missing(*modules: str) -> str:
    """Why tests with a browser cannot run here; empty if they can. modules: other packages that are needed."""
    if chromium() is None:
        return "no Chromium or Chrome is installed (Debian: apt-get install chromium)"
    for name in ("playwright", *modules):
        if importlib.util.find_spec(name) is None:
            return f"the package {name} is not installed (pip install 'rvc-spark[lab,dev]')"
    return ""


@contextlib.contextmanager
def browser(*flags: str) -> Iterator[Any]:
    """A headless browser of its own; yields playwright's Browser. flags: MAY_SOUND if none are given."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright, _launched(playwright.chromium, flags or (MAY_SOUND,)) as opened:
        yield opened


@contextlib.contextmanager
def another(first: Any, *flags: str) -> Iterator[Any]:
    """A second browser with other flags while `first` is open; there is one playwright to a thread."""
    with _launched(first.browser_type, flags) as opened:
        yield opened


@contextlib.contextmanager
def _launched(kind: Any, flags: Sequence[str]) -> Iterator[Any]:
    opened = kind.launch(executable_path=chromium(), args=[*FLAGS, *flags], headless=True)
    try:
        yield opened
    finally:
        opened.close()


def picture(page: Any, name: str) -> Path:
    """Keep what the page looks like now as TEMP/browser/name.png."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    path = PICTURES / f"{name}.png"
    page.screenshot(path=str(path))
    return path


def until(page: Any, script: str, seconds: float = 30.0) -> Any:
    """Evaluate JavaScript, which may be async, until it gives something true; returns that. seconds: a bound that only
    means "does not hang".
    """
    end = time.monotonic() + seconds
    while not (found := page.evaluate(script)):
        assert time.monotonic() < end, f"still not true after {seconds:g} s: {script}"
        page.wait_for_timeout(100)  # the page has better things to do than answering
    return found


@dataclass
class Console:
    """Errors that a page wrote or threw. ignored: parts of messages that are the host's own business."""

    ignored: Sequence[str] = ()
    errors: list[str] = field(default_factory=list)

    def follow(self, page: Any) -> Console:
        """Listen to a page from now on."""
        page.on("console", lambda message: self._note(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self._note(str(error)))
        return self

    def _note(self, text: str) -> None:
        if not any(part in text for part in self.ignored):
            self.errors.append(text)


# ---- plain pages -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def plain_server(files: dict[str, tuple[str, bytes]]) -> Iterator[str]:
    """Serve {path: (content type, bytes)}; yields the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, data = files.get(self.path.split("?")[0], ("", b""))
            self.send_response(200 if kind else 404)
            self.send_header("Content-Type", kind or "text/plain")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Silence."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


# ---- Jupyter servers -------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def private_environment(folder: Path) -> dict[str, str]:
    """The environment of a server that must not touch anybody's settings."""
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR",
              "JUPYTERLAB_WORKSPACES_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")  # fmt: skip
    private = {name: str(folder / name.lower()) for name in places}
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    return {**os.environ, **private, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": path}


@contextlib.contextmanager
def jupyter(kind: str, folder: Path, *extra: str, cwd: Path | None = None) -> Iterator[str]:
    """A server: kind is "lab", "notebook" or "voila"; yields its address. folder: for settings, logs and, unless `cwd`
    is given, notebooks.
    """
    port = free_port()
    shared = ["--no-browser", f"--port={port}", "--IdentityProvider.token=", "--ServerApp.password=", "--allow-root",
              "--ServerApp.disable_check_xsrf=True", "--ServerApp.ip=127.0.0.1"]  # fmt: skip
    options = {
        "lab": ["-m", "jupyterlab", *shared, "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"],
        "notebook": ["-m", "notebook", *shared, "--JupyterNotebookApp.expose_app_in_browser=True"],
        "voila": ["-m", "voila", "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1"],
    }  # fmt: skip
    command = [sys.executable, *options[kind], *extra]
    if kind == "lab":
        _calm(folder)
    log = folder / f"{kind}.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, env=private_environment(folder), cwd=cwd or folder, stdout=output, stderr=output,
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
    try:
        _wait_until_up(server, f"http://127.0.0.1:{port}/{'' if kind == 'voila' else 'api'}", log)
        yield f"http://127.0.0.1:{port}"
    finally:
        _end(server)


def _end_with_parent() -> None:
    """On Linux a server goes with a test run that is killed."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _calm(folder: Path) -> None:
    """JupyterLab asks whether it may fetch news, over the picture, and saves by itself every two minutes, after which
    a page that is loaded again shows other cells than one that is loaded before.
    """
    settings = {
        "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false, "doNotDisturbMode": true}',
        "docmanager-extension/plugin": '{"autosave": false}',
    }
    for name, content in settings.items():
        place = folder / "jupyterlab_settings_dir" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content, "utf-8")


def _wait_until_up(server: subprocess.Popen, address: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, TimeoutError, ConnectionError):
            urllib.request.urlopen(address, timeout=5).close()
            return
        time.sleep(0.1)
    raise AssertionError(f"the server did not start:\n{log.read_text('utf-8', 'replace')[-3000:]}")


def _end(server: subprocess.Popen) -> None:
    """End a server and its kernels: asked first, and then not asked."""
    for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(0.5 if sign == signal.SIGINT else 8)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # what it left behind


# ---- a notebook in JupyterLab or Notebook 7 --------------------------------------------------------------------------

_KERNEL = "window.jupyterapp?.shell?.currentWidget?.sessionContext"
_EXECUTE = """async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({ code, store_history: false, stop_on_error: false });
  let out = "", error = "";
  future.onIOPub = ({ header, content }) => {
    if (header.msg_type === "stream") out += content.text;
    if (header.msg_type === "error") error += `${content.ename}: ${content.evalue}\\n${content.traceback.join("\\n")}`;
  };
  await future.done;
  return { out, error };
}"""


@dataclass
class Notebook:
    """An open notebook: its page and its kernel."""

    page: Any

    def wait(self) -> Notebook:
        """Until its kernel can be asked."""
        connected = f"() => {_KERNEL}?.session?.kernel?.connectionStatus === 'connected'"
        self.page.wait_for_function(connected, timeout=1000 * START_SECONDS)
        self.page.evaluate(f"() => {_KERNEL}.ready")
        return self

    def ask(self, code: str) -> str:
        """Run code in the kernel, beside the cells; returns what it printed. AssertionError if it failed."""
        told = self.page.evaluate(_EXECUTE, code)
        assert not told["error"], told["error"]
        return told["out"]

    def cell(self, number: int, code: str) -> None:
        """Put code into a cell."""
        self.page.evaluate(
            "([i, code]) => window.jupyterapp.shell.currentWidget.content.widgets[i].model.sharedModel.setSource(code)",
            [number, code],
        )

    def run(self, number: int) -> None:
        """Start a cell as a person would; does not wait for its end."""
        self.page.evaluate(
            """(i) => {
              const content = window.jupyterapp.shell.currentWidget.content;
              content.activeCellIndex = i;
              window.jupyterapp.commands.execute("notebook:run-cell");
            }""",
            number,
        )

    def interrupt(self) -> None:
        """The stop button of the toolbar."""
        self.page.evaluate(f"() => {_KERNEL}.session.kernel.interrupt()")

    def busy(self) -> bool:
        """Whether its kernel is at work."""
        return self.page.evaluate(f"() => {_KERNEL}.session.kernel.status") == "busy"

    def text(self, number: int) -> str:
        """What a cell's output says, as text."""
        cells = self.page.locator(".jp-Notebook .jp-Cell")
        return cells.nth(number).locator(".jp-Cell-outputArea").inner_text()
