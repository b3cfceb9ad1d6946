"""The command line: the only place that puts library, server and client together."""
