"""Kinds of servers behind one protocol: probe, launch, ask, stop."""
