"""Models on this disk: where they are, what their metadata says, and which drafts fit which main model.

::

    places ──▶ walk ──▶ gguf_file, mlx_folder ──▶ Model ──▶ candidates
    folders    files    metadata, never weights

Start at `autospec.catalog.scan.scan`.
"""
