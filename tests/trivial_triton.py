"""Trivial models for a real Triton server: a folder that it serves with nothing but numpy, in the blink of an eye.

    write_model(folder / "models", "double")                    # y = 2 x
    write_model(folder / "models", "count", COUNT, decoupled=True)   # 0, 1, ... x-1, one answer each
    write_model(folder / "models", "broken", BROKEN)            # refuses to load
"""

from __future__ import annotations

from pathlib import Path

DOUBLE = '''
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", (2 * x).astype(np.float32))]))
        return answers
'''

COUNT = '''
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for number in range(int(pb_utils.get_input_tensor_by_name(request, "x").as_numpy().flat[0])):
                tensor = pb_utils.Tensor("y", np.full((1, 1), number, np.float32))
                sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
'''

BROKEN = '''
class TritonPythonModel:
    def initialize(self, args):
        raise ValueError("the weights are made of cheese")

    def execute(self, requests):
        return []
'''

CONFIG = '''name: "{name}"
backend: "python"
max_batch_size: 4
input [ {{ name: "x", data_type: TYPE_FP32, dims: [ -1 ] }} ]
output [ {{ name: "y", data_type: TYPE_FP32, dims: [ -1 ] }} ]
instance_group [ {{ kind: KIND_CPU, count: {instances} }} ]
model_transaction_policy {{ decoupled: {decoupled} }}
'''


def write_model(
    repository: Path, name: str = "double", source: str = DOUBLE, *, instances: int = 1, decoupled: bool = False
) -> Path:
    """One Python-backend model `name` (x FP32 [B, n] -> y FP32 [B, n]) in a repository folder, which is returned."""
    version = repository / name / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "model.py").write_text(source, encoding="utf-8")
    config = CONFIG.format(name=name, instances=instances, decoupled=str(decoupled).lower())
    (repository / name / "config.pbtxt").write_text(config, encoding="utf-8")
    return repository
