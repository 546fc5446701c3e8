"""`python -m rvc_spark` is `rvc-spark`."""

from rvc_spark.cli import main

raise SystemExit(main())
