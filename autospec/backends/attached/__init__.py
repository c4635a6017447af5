"""Servers that autospec did not start: LM Studio, a running llama-server."""
