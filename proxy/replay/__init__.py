"""Drive a running proxy with a recorded trace, then hold its ledger against the bill.

It is a client like any other: the stock AWS SDK for the calls, the admin REST for tenants, keys and
the ledger. It sees nothing of the proxy's insides.
"""

from proxy.replay.run import main

__all__ = ["main"]
