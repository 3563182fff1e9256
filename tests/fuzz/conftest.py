"""The running product of tests/security, for the fuzzer of the OpenAPI document."""

from tests.security.conftest import module_owner_url, module_stack

__all__ = ["module_owner_url", "module_stack"]
