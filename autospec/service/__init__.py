"""The daemon as a service of launchd (macOS) or systemd (Linux), and the socket between daemon and proxy."""
