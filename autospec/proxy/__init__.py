"""The proxy's HTTP: requests of OpenAI's and Anthropic's clients, each answered by a server that `autospec.serving` lends."""
