"""A tune: predict what pays, search for the best drafting, prove it on other prompts, write the recommendation."""
