"""`autospec report`: one HTML page that opens offline. Findings from the store, figures by Matplotlib, the page by Jinja2.

Importing this package needs neither: both come with the extra `report`.
"""

from typing import Final

__all__ = ["GENERATOR"]

GENERATOR: Final = "autospec report"
"""In the page's ``<meta name="generator">``; a file with it may be written again."""
