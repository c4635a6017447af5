"""The servers that the proxy borrows: which ones run, with which drafting, and for how long."""
