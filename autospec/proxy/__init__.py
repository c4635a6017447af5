"""The proxy: OpenAI-compatible, in front of real servers, each request on the launch that is best for its kind of prompt."""
