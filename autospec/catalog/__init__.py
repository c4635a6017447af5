"""Models on this disk: where they are, what their metadata says, and which drafts fit. Start at `autospec.catalog.scan.scan`."""
