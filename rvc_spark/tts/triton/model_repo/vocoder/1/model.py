"""Tokens in, sound out; `rvc_spark.tts.triton_service_codec` does the work."""

import numpy

if int(numpy.__version__.partition(".")[0]) >= 2:
    raise ImportError(f"numpy {numpy.__version__}: the server's Python backend hands out wrong numbers under numpy 2")

import json

import triton_python_backend_utils as backend

from rvc_spark.tts.triton_service_networks import vocoder_desk


class TritonPythonModel:
    """What the server looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the codec's speaking half."""
        self.desk = vocoder_desk(backend, json.loads(args["model_config"]))

    def execute(self, requests: list) -> list:
        """Decode; requests that come together have one shape and make one batch."""
        return self.desk.answer(requests)
