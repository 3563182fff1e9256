"""What speaks Redis. Its client reports to OpenTelemetry where that is installed, which nobody here asked
for: it is imported as if it were not, or every worker would carry metrics that nobody reads, 2 MB.
"""

import sys

if "opentelemetry" not in sys.modules:
    sys.modules["opentelemetry"] = None  # type: ignore[assignment]
    import redis.asyncio  # noqa: F401

    del sys.modules["opentelemetry"]
