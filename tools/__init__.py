"""Commands that are used rarely: python -m tools.NAME."""
