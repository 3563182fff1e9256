"""Asks a running release what anyone may ask. Arguments: addresses of the proxy and of the metrics."""

import http.client
import ssl
import sys
from urllib.parse import urlsplit


def ask(method: str, address: str, path: str) -> tuple[int, str]:
    """Status and body. The certificate is the cluster's own affair."""
    parts = urlsplit(address)
    if parts.scheme == "https":
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.netloc, timeout=10, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    connection.request(method, path, b"{}" if method == "POST" else None)
    answer = connection.getresponse()
    return answer.status, answer.read().decode("utf-8", "replace")


def main(proxy: str, proxy_metrics: str, worker_metrics: str) -> int:
    asked = [
        ("ready", "GET", proxy, "/health/ready", 200, "ready"),
        (
            "refuses a call without a key",
            "POST",
            proxy,
            "/model/meta.llama3-1-405b-instruct-v1:0/invoke",
            403,
            "",
        ),
        ("does not show metrics to clients", "GET", proxy, "/metrics", 404, ""),
        ("metrics of the proxy", "GET", proxy_metrics, "/metrics", 200, "tollhouse_limiter_mode{"),
        ("metrics of the worker", "GET", worker_metrics, "/metrics", 200, "tollhouse_invariant_violations{"),
    ]
    failed = 0
    for what, method, address, path, status, part in asked:
        got, body = ask(method, address, path)
        good = got == status and part in body
        failed += not good
        print(f"{'ok  ' if good else 'FAIL'} {what}: {method} {address}{path} -> {got}")
    return 1 if failed else 0


sys.exit(main(*sys.argv[1:]))
