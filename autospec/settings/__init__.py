"""Settings: flag > environment > config file > default, each value with the source it came from.

`KEYS` is the whole list. The file is TOML; every key is also ``AUTOSPEC_<KEY>`` in the environment.
``AUTOSPEC_HOME`` moves config, state, cache and logs together.
"""

from __future__ import annotations

from autospec.settings.forms import parse_duration, parse_hours
from autospec.settings.keys import KEYS, Key
from autospec.settings.loading import Settings, load_settings, locate_config

__all__ = ["KEYS", "Key", "Settings", "load_settings", "locate_config", "parse_duration", "parse_hours"]
