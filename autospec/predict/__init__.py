"""The expected speed of draftings: from replayed recordings, from the counts of launches, or from bytes and bandwidth alone."""
