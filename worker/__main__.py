"""`python -m worker` is the `extract` command: how the service starts itself when nothing is installed."""

from worker.cli import main

if __name__ == "__main__":
    main()
