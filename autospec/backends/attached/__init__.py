"""Servers that somebody else started: LM Studio, a running llama-server."""
