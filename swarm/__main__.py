"""``python -m swarm``: the command line where no script was installed."""

from swarm.cli import main

main()
