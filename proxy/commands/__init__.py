"""Commands for people who live in a terminal: the admin REST as verbs, and work on policy files.

`verbs` says what there is, `rest` asks the server, `output` shows what it said; `policies` and `keyring`
work without a server. Every command that asks the server takes `--json`.
"""
