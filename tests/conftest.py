"""Two threads at most, so that tests beside each other do not fight for cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
