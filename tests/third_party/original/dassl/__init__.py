"""Stand-in for the original Dassl: the public behaviour that a trainer meets, and nothing more."""

__version__ = "0.6.3"
