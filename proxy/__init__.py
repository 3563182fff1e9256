"""Tollhouse: a usage-governance proxy with hard cost controls for Amazon Bedrock."""

__version__ = "0.1.0"
