"""The front model: text and a reference recording in, speech out. `rvc_spark.tts.triton_service` does the work."""

import numpy

if int(numpy.__version__.partition(".")[0]) >= 2:
    raise ImportError(f"numpy {numpy.__version__}: the server's Python backend hands out wrong numbers under numpy 2")

import json

import triton_python_backend_utils as backend

from rvc_spark.tts.triton_service import SparkService
from rvc_spark.tts.triton_service_bls import ServerModels
from rvc_spark.tts.triton_service_desk import SpeechDesk
from rvc_spark.tts.triton_service_frozen import FrozenWatch


class TritonPythonModel:
    """What the server looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer; the other models are asked only when a request comes."""
        config = json.loads(args["model_config"])
        streaming = backend.using_decoupled_model_transaction_policy(config)
        self.desk = SpeechDesk(backend, SparkService(config, ServerModels(backend)), streaming=streaming)
        self.watch = FrozenWatch()
        self.watch.start()

    def execute(self, requests: list) -> None:
        """Take the requests; each is answered from a thread of its own."""
        for request in requests:
            self.desk.take(request)

    def finalize(self) -> None:
        """End the threads."""
        self.desk.close()
        self.watch.close()
