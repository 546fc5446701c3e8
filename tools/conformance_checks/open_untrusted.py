"""Opens one file as several kinds of model and says what came of each. A program of its own, run by `hostile`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rvc_spark.errors import RvcSparkError
from rvc_spark.infer.checkpoint import inspect_checkpoint, read_checkpoint
from rvc_spark.infer.content import load_content_encoder
from rvc_spark.infer.fairseq import read_fairseq
from rvc_spark.infer.index import read_index
from rvc_spark.infer.rmvpe import load_rmvpe

DOORS = {
    "voice": read_checkpoint,
    "inspect": inspect_checkpoint,
    "content": load_content_encoder,
    "fairseq": read_fairseq,
    "rmvpe": load_rmvpe,
    "index": read_index,
}


def main(path: str, *doors: str) -> int:
    """One JSON line [door, "opened" or "refused"] each. Any other error ends the program with its traceback."""
    for door in doors:
        try:
            DOORS[door](Path(path))
        except RvcSparkError as error:
            verdict = "refused"
            sys.stderr.write(f"{door}: {type(error).__name__}: {error}\n")
        else:
            verdict = "opened"
        sys.stdout.write(json.dumps([door, verdict]) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
