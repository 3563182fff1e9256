# mypy: ignore-errors
"""The AWS command line, version 1, which has no streaming commands for Bedrock."""

import json
import subprocess
import sys
import tempfile

from saying import CLAUDE, LLAMA, PROMPT, run


def _aws(*words):
    done = subprocess.run(
        [sys.executable, "-m", "awscli", "bedrock-runtime", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return json.loads(done.stdout)


def converse():
    messages = json.dumps([{"role": "user", "content": [{"text": PROMPT}]}])
    config = json.dumps({"maxTokens": 64})
    answer = _aws("converse", "--model-id", CLAUDE, "--messages", messages, "--inference-config", config)
    return answer["output"]["message"]["content"][0]["text"]


def invoke():
    body = json.dumps({"prompt": PROMPT, "max_gen_len": 64})
    with tempfile.NamedTemporaryFile() as out:
        _aws("invoke-model", "--model-id", LLAMA, "--body", body, out.name)
        return json.load(out)["generation"]


run(converse, invoke)
