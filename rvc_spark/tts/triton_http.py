"""A Triton server's HTTP API with nothing but the standard library: health, metadata, loading, a JSON inference.

Meant for starting and watching a server, not for speech: numbers travel as decimal text here. Knows no model.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from rvc_spark.errors import (
    TritonError,
    TritonModelError,
    TritonRequestError,
    TritonTimeoutError,
    TritonUnreachableError,
)
from rvc_spark.tts.triton_log import clean

UNHEALTHY = "is not healthy"  # the server's words for a model whose process is gone
MAX_ANSWER = 64 << 20  # bytes; a stranger's server must not fill the memory


class ServerApi:
    """One server's HTTP address. Every call opens a connection of its own, so any thread may use it.

    Raises TritonUnreachableError when nothing answers, TritonTimeoutError after `timeout` seconds, TritonModelError for
    a model that is missing or failed inside, TritonRequestError for what the server refuses.
    """

    def __init__(self, host: str, port: int, *, timeout: float = 10.0) -> None:
        self.host, self.port, self.timeout = host, port, timeout

    @property
    def address(self) -> str:
        """`127.0.0.1:8000`."""
        return f"{self.host}:{self.port}"

    def live(self) -> bool:
        """Whether a Triton server answers here at all; never raises."""
        return self._says_yes("/v2/health/live")

    def ready(self) -> bool:
        """Whether the server and everything it was told to load is ready; never raises."""
        return self._says_yes("/v2/health/ready")

    def model_ready(self, model: str) -> bool:
        """Whether one model is ready; never raises. Stays true when the model's process has died: probe it."""
        return self._says_yes(f"/v2/models/{quote(model, safe='')}/ready")

    def metadata(self, model: str) -> dict[str, Any]:
        """Names, types and shapes of a model's inputs and outputs."""
        return self._json("GET", f"/v2/models/{quote(model, safe='')}")

    def config(self, model: str) -> dict[str, Any]:
        """A model's whole configuration, as the server completed it."""
        return self._json("GET", f"/v2/models/{quote(model, safe='')}/config")

    def index(self) -> list[dict[str, str]]:
        """Every model of the repository: {name, version, state, reason}; all but the name only where they are known."""
        return self._json("POST", "/v2/repository/index", {})

    def load(self, model: str, timeout: float | None = None) -> None:
        """Load a model (again). Returns when it is ready."""
        self._json("POST", f"/v2/repository/models/{quote(model, safe='')}/load", {}, timeout)

    def unload(self, model: str, timeout: float | None = None) -> None:
        """Begin to unload a model. Returns at once: it is gone when `index` says so."""
        self._json("POST", f"/v2/repository/models/{quote(model, safe='')}/unload", {}, timeout)

    def infer(self, model: str, inputs: Sequence[Mapping[str, Any]], timeout: float | None = None) -> dict[str, Any]:
        """One inference of a model that answers once: inputs are {name, shape, datatype, data}, as is the answer's."""
        return self._json("POST", f"/v2/models/{quote(model, safe='')}/infer", {"inputs": list(inputs)}, timeout)

    def stream(self, model: str, inputs: Mapping[str, Any], timeout: float | None = None) -> list[dict[str, Any]]:
        """Every answer of a decoupled model, as {output name: values}. Raises for an error among them."""
        path = f"/v2/models/{quote(model, safe='')}/generate_stream"
        status, body = self._ask("POST", path, dict(inputs), timeout)
        text = body.decode("utf-8", "replace")
        if status != 200:
            raise self._refusal(status, text, path)
        events = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]
        for event in events:
            if set(event) == {"error"}:
                raise self._refusal(500, json.dumps(event), path)
        return events

    def _says_yes(self, path: str) -> bool:
        try:
            return self._ask("GET", path, None, None)[0] == 200
        except (TritonUnreachableError, TritonTimeoutError):
            return False

    def _json(self, method: str, path: str, content: Any = None, timeout: float | None = None) -> Any:
        status, body = self._ask(method, path, content, timeout)
        text = body.decode("utf-8", "replace")
        if status != 200:
            raise self._refusal(status, text, path)
        try:
            return json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise TritonRequestError(
                f"{self.address}{path} answered something that is not JSON: {text[:80]!r}",
                "Is this the HTTP port of a Triton server?",
            ) from error

    def _ask(self, method: str, path: str, content: Any, timeout: float | None) -> tuple[int, bytes]:
        patience = self.timeout if timeout is None else timeout
        connection = http.client.HTTPConnection(self.host, self.port, timeout=patience)
        try:
            body = None if content is None else json.dumps(content).encode("utf-8")
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read(MAX_ANSWER)
        except TimeoutError as error:
            raise TritonTimeoutError(
                f"{self.address} did not answer {path} within {patience:g} s", "Is the server overloaded or stuck?"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise TritonUnreachableError(
                f"no Triton server answers at http://{self.address}: {error}", "Start one with rvc-spark triton up."
            ) from error
        finally:
            connection.close()

    def _refusal(self, status: int, text: str, path: str) -> TritonError:
        """An error answer as the leaf that fits; 4xx of a model path is a missing model or a wrong request."""
        try:
            words = str(json.loads(text.removeprefix("data:"))["error"])  # a stream refuses in its own form
        except (ValueError, KeyError, TypeError):
            words = text[:200] or f"HTTP status {status}"
        missing = "unknown model" in words or "is not found" in words or "no available versions" in words
        if missing or UNHEALTHY in words or status >= 500 and status != 501:
            return TritonModelError(f"{self.address}{path}: {clean(words)}", "rvc-spark triton logs shows the reason.")
        return TritonRequestError(f"{self.address}{path}: {clean(words)}", "The same request would be refused again.")
