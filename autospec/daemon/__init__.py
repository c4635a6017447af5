"""What to tune next, when, and the loop that does it. At rest nothing heavy is imported here: see `daemon.survey`."""
