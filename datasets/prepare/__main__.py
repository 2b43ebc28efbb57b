"""`python -m datasets.prepare NAME`: fetch, unpack and check a data set."""

from datasets.prepare.command import main

if __name__ == "__main__":
    main()
