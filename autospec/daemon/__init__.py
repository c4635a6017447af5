"""What to tune next and when, and the loop that tunes. At rest it imports nothing heavy: see `daemon.work_finder`."""
