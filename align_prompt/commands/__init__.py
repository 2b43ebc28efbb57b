"""Commands of the program, one module each."""
