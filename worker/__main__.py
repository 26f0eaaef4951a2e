"""`python -m worker` is the `extract` command. The service starts its own processes in this way."""

from worker.cli import main

if __name__ == "__main__":
    main()
