"""A recording in, tokens of its voice and of its speech out; `rvc_spark.tts.triton_service_codec` does the work."""

import numpy

if int(numpy.__version__.partition(".")[0]) >= 2:
    raise ImportError(f"numpy {numpy.__version__}: the server's Python backend hands out wrong numbers under numpy 2")

import json

import triton_python_backend_utils as backend

from rvc_spark.tts.triton_service_networks import tokenizer_desk


class TritonPythonModel:
    """What the server looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the codec's listening half; the feature network follows in the background."""
        self.desk = tokenizer_desk(backend, json.loads(args["model_config"]))

    def execute(self, requests: list) -> None:
        """Take the requests; known voices are answered at once, others in the order they came."""
        for request in requests:
            self.desk.take(request)

    def finalize(self) -> None:
        """End the threads."""
        self.desk.close()
