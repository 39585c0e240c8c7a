"""The command line: what every command shares."""
