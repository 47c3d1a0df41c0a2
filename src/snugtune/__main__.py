"""``python -m snugtune``."""

from snugtune.cli import main

main()
