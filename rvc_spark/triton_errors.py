"""What a Triton server and the way to it report, as errors of this package.

A stream tells of failures in two ways: messages within it, without a status, after which it goes on; and the end of the
call with a status of gRPC. Both become one of our leaves here, by text where there is nothing else. Servers of this
package begin their messages with a code word and a colon.
"""

from __future__ import annotations

import re

from rvc_spark.errors import (
    AudioError,
    NothingSpokenError,
    RvcSparkError,
    TextError,
    TritonModelError,
    TritonRequestError,
    TritonTimeoutError,
    TritonUnreachableError,
)

MAX_SHOWN = 300
"""Characters of a server's message that are shown."""

UNKNOWN_VOICE = "UNKNOWN_VOICE"
_CODE_WORD = re.compile(r"(?:^|\s)([A-Z]{2,}(?:_[A-Z]+)+|INTERNAL): ")
_PATH = re.compile(r"(?:[A-Za-z]:\\|(?<![\w:/])/)[\w.+~-]+(?:[/\\][\w.+~ -]+)+")
_BY_CODE_WORD: dict[str, tuple[type[RvcSparkError], str]] = {
    "INVALID_TEXT": (TextError, "Change the text."),
    "NO_SPEECH": (NothingSpokenError, "Try another seed, or write the sentence in other words."),
    "INVALID_REFERENCE": (AudioError, "Give another recording of the voice."),
    "INVALID_PARAMETER": (TritonRequestError, "Correct the setting."),
    "INTERNAL": (TritonModelError, "Look into the server's log."),
}
_MISSING = re.compile(r"unknown model|no available versions|model .{0,140} not (?:found|ready)|not loaded", re.I)
_SIGNATURE = re.compile(
    r"unexpected (?:shape|datatype|inference (?:in|out)put)|expected \d+ inputs|inference input.*data-type"
    r"|failed to find (?:in|out)put|missing",
    re.I,
)
_BUSY = re.compile(r"maximum queue size|request timeout expired", re.I)
_NO_HTTP2 = re.compile(r"http1\.?x|http/1|SETTINGS frame|missing.*content-type|connect an http", re.I)


def stream_error(message: str, model: str, place: str) -> RvcSparkError:
    """The error for a message within a stream, where there is no status.

    place: the server's address, for the message.
    """
    found = _CODE_WORD.search(message[:MAX_SHOWN])
    if found and found[1] in _BY_CODE_WORD:
        leaf, step = _BY_CODE_WORD[found[1]]
        return leaf(f"the Triton server at {place} says: {_shown(message[found.end() :])}", step)
    if _MISSING.search(message):
        return TritonModelError(
            f"the Triton server at {place} has no model {model} to use ({_shown(message)})",
            "Wait until it is loaded, or name another with `model`.",
        )
    if "is not healthy" in message:
        return TritonModelError(
            f"the process of model {model} at {place} has died", "Load the model again, or restart the server."
        )
    if _BUSY.search(message):
        return TritonRequestError(f"the Triton server at {place} is busy ({_shown(message)})", "Try again later.")
    if "restricted" in message:
        return TritonRequestError(
            f"the Triton server at {place} keeps this to those who know a token ({_shown(message)})",
            "Start it without restricted endpoints.",
        )
    if _SIGNATURE.search(message):
        return TritonModelError(
            f"the model {model} at {place} has another signature than Spark-TTS ({_shown(message)})",
            "Serve the model repository of this package, or the public one.",
        )
    return TritonModelError(
        f"the model {model} at {place} failed: {_shown(message)}", "Look into the server's log, or try again."
    )


def call_error(status: str, details: str, model: str, place: str) -> RvcSparkError:
    """The error for a call that ended with a status of gRPC, such as "UNAVAILABLE"."""
    shown = _shown(details)
    if _NO_HTTP2.search(details):
        return TritonUnreachableError(
            f"{place} does not speak gRPC ({shown})",
            "Name the port of gRPC, usually 8001: 8000 is HTTP and 8002 the metrics; and check the encryption setting.",
        )
    if status == "DEADLINE_EXCEEDED":
        return TritonTimeoutError(f"the Triton server at {place} took too long", "Allow more time, or send less text.")
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return TritonRequestError(f"{place} refuses access ({shown})", "Set triton_token to what the server expects.")
    if status == "RESOURCE_EXHAUSTED":
        return TritonModelError(f"{place} sent or was sent too much at once ({shown})", "Send shorter sentences.")
    if status == "UNIMPLEMENTED":
        return TritonUnreachableError(f"{place} is no Triton server ({shown})", "Check the address and the port.")
    if status in ("NOT_FOUND", "INVALID_ARGUMENT", "FAILED_PRECONDITION") or _MISSING.search(details):
        return stream_error(details, model, place)
    if status == "UNAVAILABLE" and (_BUSY.search(details) or "restricted" in details):
        return stream_error(details, model, place)
    if status == "INTERNAL" and "RST_STREAM" not in details and "stream" not in details.lower():
        return stream_error(details, model, place)
    return TritonUnreachableError(
        f"no Triton server answers at {place}, or the connection broke ({status}: {shown})",
        "Start it with `rvc-spark triton up`, or set TRITON_SERVER_ADDR and TRITON_SERVER_PORT.",
    )


def is_worth_repeating(status: str | None, message: str) -> bool:
    """Whether the same request may succeed a moment later: nobody answered, or the queue was full."""
    return status == "UNAVAILABLE" and "restricted" not in message or bool(_BUSY.search(message))


def wants_voice_again(message: str) -> bool:
    """Whether a server of this package has forgotten the voice a request named."""
    found = _CODE_WORD.search(message[:MAX_SHOWN])
    return found is not None and found[1] == UNKNOWN_VOICE


def _shown(message: str) -> str:
    """The first of a message, on one line, without the places on the server's disk that Python's backend adds."""
    text = _PATH.sub("(a path)", message.split("\n\nAt:")[0])
    text = "".join(char if char.isprintable() else " " for char in text)
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
