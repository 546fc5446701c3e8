"""The language model run by torch, where there is no TensorRT-LLM; `rvc_spark.tts.triton_service_lm` does the work.

The server reads this file only when config.pbtxt names the Python backend.
"""

import numpy

if int(numpy.__version__.partition(".")[0]) >= 2:
    raise ImportError(f"numpy {numpy.__version__}: the server's Python backend hands out wrong numbers under numpy 2")

import json

import triton_python_backend_utils as backend

from rvc_spark.tts.triton_service_networks import language_model_desk


class TritonPythonModel:
    """What the server looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the language model and start its scheduler."""
        self.desk = language_model_desk(backend, json.loads(args["model_config"]))

    def execute(self, requests: list) -> None:
        """Take the requests; they join the running batch."""
        for request in requests:
            self.desk.take(request)

    def finalize(self) -> None:
        """End all generation."""
        self.desk.close()
