"""What the notebook runs on, in a cell: the GPU and its memory, or that there is none, and how exactly it will compute.

Nothing is decided here: the configuration chooses the device and the engines their number formats, each with a reason.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from rvc_spark.rvc_config import Choice, RVCConfig
from rvc_spark.tts.spark_lm import lm_precision
from rvc_spark.widgets.tables import Table

GIB = 1 << 30
SLOW = "everything works, the demo voice faster than real time; Spark-TTS needs patience"


@dataclass(frozen=True)
class Machine:
    """A device with what it has; the last line of a cell shows it.

    gpu_bytes: memory of the GPU, None without one. conversion, language_model: number formats, with their reasons.
    """

    device: Choice
    gpu_bytes: int | None
    cores: int
    conversion: Choice
    language_model: Choice

    def table(self) -> Table:
        """One row per part."""
        if self.gpu_bytes is None:
            memory = f"none; {self.cores} processor core{'s' * (self.cores != 1)}: {SLOW}"
        else:
            memory = f"{self.gpu_bytes / GIB:.1f} GiB"
        rows = (
            ("device", str(self.device)), ("GPU memory", memory), ("conversion computes in", str(self.conversion)),
            ("Spark-TTS computes in", str(self.language_model)),
        )  # fmt: skip
        return Table(("part", "what is here"), rows)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def __repr__(self) -> str:
        return repr(self.table())


def survey_machine(config: RVCConfig | None = None) -> Machine:
    """The device of a configuration, this machine's default if None.

    Raises ConfigError when the configuration names a device that is not here.
    """
    config = config or RVCConfig()
    device = config.device_choice()
    gpu_bytes = None
    if device.value.startswith("cuda"):
        import torch

        gpu_bytes = torch.cuda.get_device_properties(torch.device(device.value)).total_memory
    language_model = lm_precision(config.precision, device.value)
    return Machine(device, gpu_bytes, os.cpu_count() or 1, config.precision_choice(), language_model)
