"""Opens one file as one kind of model and says "opened" or "refused". A program of its own, run by `hostile`."""

from __future__ import annotations

import sys
from pathlib import Path

from rvc_spark.errors import RvcSparkError
from rvc_spark.infer.checkpoint import read_checkpoint
from rvc_spark.infer.content import load_content_encoder
from rvc_spark.infer.index import read_index
from rvc_spark.infer.rmvpe import load_rmvpe

DOORS = {"voice": read_checkpoint, "content": load_content_encoder, "rmvpe": load_rmvpe, "index": read_index}


def main(door: str, path: str) -> int:
    """0 when the file was opened or refused properly; anything else ends in a traceback."""
    try:
        DOORS[door](Path(path))
    except RvcSparkError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stdout.write("refused\n")
        return 0
    sys.stdout.write("opened\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
