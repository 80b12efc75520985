"""`python -m dml`: the command `dml`."""

from dml.use.command import main

if __name__ == "__main__":
    main()
