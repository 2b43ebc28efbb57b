"""Data of a config."""

from .data_manager import DataManager as DataManager
