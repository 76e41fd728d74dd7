"""`python -m avgrad.cli`, for where the command is not on the path."""

from avgrad.cli import main

if __name__ == "__main__":
    main()
