"""A finished run as a folder for other programs, checked in a new process, and on the Hub."""
