"""The command line: arguments and one module a command."""
