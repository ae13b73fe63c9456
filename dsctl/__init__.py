"""The command line of dsctl: parses, calls dsctl_core, shows the result."""
