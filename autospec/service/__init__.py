"""The daemon as a service of the user's own supervisor: launchd on macOS, systemd on Linux.

`definition` has the values and the protocol of a supervisor. `launchd` and `systemd` are pure: they render a file, name the
commands to run and read their answers. `lifecycle` finds out what this machine has and runs the commands. `control` is the
socket between daemon and proxy.
"""
