"""llama.cpp: its server, the same server in a child of our own, and llama-cpp-python."""
