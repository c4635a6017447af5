"""What runs in the background: the control socket between proxy and daemon, launchd and systemd."""
