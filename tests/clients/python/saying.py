# mypy: ignore-errors
"""What every client script does with its cases: run each, print what came of it as one JSON object."""

import asyncio
import inspect
import json
import os
import sys
import traceback

LLAMA = os.environ.get("LLAMA", "meta.llama3-1-405b-instruct-v1:0")
LLAMA_SMALL = "meta.llama3-1-70b-instruct-v1:0"
CLAUDE = os.environ.get("CLAUDE", "anthropic.claude-3-haiku-20240307-v1:0")
GPT = "openai.gpt-oss-20b-1:0"
URL = os.environ["TOLLHOUSE_URL"]
KEY = os.environ["TOLLHOUSE_API_KEY"]
REGION = os.environ["AWS_REGION"]
PROMPT = "Say hello to the toll keeper. [[tokens=12]]"


def run(*cases):
    """Each case returns the text of an answer, or raises what its client makes of a refusal."""
    said = {}
    for case in cases:
        try:
            text = asyncio.run(case()) if inspect.iscoroutinefunction(case) else case()
            said[case.__name__] = {"text": text}
        except Exception as error:
            said[case.__name__] = {"error": f"{type(error).__name__}: {error}"}
            if os.environ.get("CLIENT_DEBUG"):
                traceback.print_exc()
    sys.stdout.write("\nSAID " + json.dumps(said) + "\n")
