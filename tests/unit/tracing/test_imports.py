"""A worker that does not trace does not carry OpenTelemetry."""

import subprocess
import sys


def test_nothing_of_it_is_imported_before_it_is_switched_on():
    said = "import sys, proxy.app; print([m for m in sys.modules if m.partition('.')[0] in {'opentelemetry', 'google'}])"
    done = subprocess.run(
        [sys.executable, "-c", said], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_it_is_there_to_be_switched_on():
    said = "import proxy.app; from proxy.tracing.otlp import Exporter"
    subprocess.run([sys.executable, "-c", said], check=True, timeout=60)
