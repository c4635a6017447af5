"""From one recorded answer per prompt and one pass per draft to the expected speed of every drafting. No launches."""
