"""The daemon as a service of the user's own supervisor: launchd on macOS, systemd on Linux.

`protocol` has the values and the one small protocol; `launchd` and `systemd` are pure: they render a file, say which
commands to run and read what the answers mean. `lifecycle` does what they say, `commands` runs the programs, and
`here` finds out what this machine has. `notify` is the daemon's side of systemd's readiness protocol.
"""
